"""Batches that came packed: the compiled core applies what is plain in them, event by event, and the rest is left to the caller."""

from collections.abc import Callable, Iterator
from typing import Any

from indexer.compiled import core
from indexer.core.block_runs import Played
from indexer.core.events import Event, PlainEvents, Removed, Stored, Tier
from indexer.core.held_blocks import HeldBlocks, Roots
from indexer.core.token_sample import TokenSample

GPU = Tier.GPU

PACKED = None if core is None else core.PlainEvents
"""The type of such a batch; None without the compiled core."""


FindRoots = Callable[[tuple[Any, ...]], Roots | None]
"""What `HeldBlocks.play` asks for, by `PlainEvents.said`; None while nothing in the stream is plain."""


def odd_events(events: PlainEvents, blocks: HeldBlocks, sample: TokenSample, removed: dict[Tier, int], find_roots: FindRoots) -> Iterator[Event]:
    """Applies the events to `blocks`, and says which ones the caller has to apply, each in its turn. `sample`, `removed`: what else they change."""
    roots = find_roots(events.said)
    if roots is None:
        return iter(events)
    played = blocks.play(events, 0, roots, sample.until_next - 1)
    position, _, stored, _, count, _ = played
    sample.until_next -= stored
    if count:
        removed[GPU] += count
    return iter(()) if position == len(events) else _rest(events, played, blocks, sample, removed, find_roots)


def _rest(
    events: PlainEvents, played: Played, blocks: HeldBlocks, sample: TokenSample, removed: dict[Tier, int], find_roots: FindRoots
) -> Iterator[Event]:
    """`played`: what is done."""
    while played[0] < len(events):
        position, done, _, _, _, keys = played
        event = events[position]
        if not done:
            yield event
        else:
            blocks.finish(event, done, keys)
            if isinstance(event, Stored):
                sample.until_next -= 1
            elif isinstance(event, Removed):
                removed[GPU] += len(event.hashes)
        roots = find_roots(events.said)
        if roots is None:
            played = position + 1, 0, 0, 0, 0, None
            continue
        played = blocks.play(events, position + 1, roots, sample.until_next - 1)
        sample.until_next -= played[2]
        if played[4]:
            removed[GPU] += played[4]
