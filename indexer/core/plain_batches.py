"""Batches that came packed: the compiled core applies what is plain in them, event by event, and the rest is left to the caller."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from indexer.compiled import core
from indexer.core.block_runs import Played
from indexer.core.events import Event, PlainEvents, Removed, Stored, Tier
from indexer.core.held_blocks import HeldBlocks
from indexer.core.token_sample import TokenSample

GPU = Tier.GPU

PACKED = None if core is None else core.PlainEvents
"""The type of such a batch; None without the compiled core."""


Roots = Callable[[tuple[Any, ...]], tuple[int, int] | None]
"""Of `PlainEvents.said`, which of it is the lead group's, as bits, and the key before the first block of a prompt; None while nothing in the stream
is plain."""


def odd_events(events: PlainEvents, blocks: HeldBlocks, sample: TokenSample, removed: dict[Tier, int], roots: Roots) -> Iterable[Event]:
    """Applies the events to `blocks`, and says which ones the caller has to apply, each in its turn. `sample`, `removed`: what else they change."""
    found = roots(events.said)
    if found is None:
        return events
    played = blocks.play(events, 0, *found, sample.until_next - 1)
    position, _, stored, _, count, _ = played
    sample.until_next -= stored
    if count:
        removed[GPU] += count
    return () if position == len(events) else _rest(events, played, blocks, sample, removed, roots)


def _rest(events: PlainEvents, played: Played, blocks: HeldBlocks, sample: TokenSample, removed: dict[Tier, int], roots: Roots) -> Iterator[Event]:
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
        found = roots(events.said)
        if found is None:
            played = position + 1, 0, 0, 0, 0, None
            continue
        played = blocks.play(events, position + 1, *found, sample.until_next - 1)
        sample.until_next -= played[2]
        if played[4]:
            removed[GPU] += played[4]
