"""Batches that came packed: the compiled core applies what is plain in them, event by event, and the rest is left to the caller."""

from collections.abc import Callable, Iterator
from typing import Any

from msgspec import structs

from indexer.compiled import core
from indexer.core.block_keys import TOKEN_BYTES
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
    played = _play(events, 0, blocks, roots, sample, removed)
    return iter(()) if played[0] == len(events) else _rest(events, played, blocks, sample, removed, find_roots)


def _play(events: PlainEvents, first: int, blocks: HeldBlocks, roots: Roots, sample: TokenSample, removed: dict[Tier, int]) -> Played:
    played = blocks.play(events, first, roots, sample.until_next - 1)
    _, _, stored, _, count = played
    sample.until_next -= stored
    if count:
        removed[GPU] += count
    return played


def _rest(
    events: PlainEvents, played: Played, blocks: HeldBlocks, sample: TokenSample, removed: dict[Tier, int], find_roots: FindRoots
) -> Iterator[Event]:
    """`played`: what is done."""
    while played[0] < len(events):
        position, done, *_ = played
        event = events[position]
        if done:
            (blocks.stored if isinstance(event, Stored) else removed)[GPU] += done
            event = _without_first(event, done)
        yield event
        roots = find_roots(events.said)
        played = (position + 1, 0, 0, 0, 0) if roots is None else _play(events, position + 1, blocks, roots, sample, removed)


def _without_first(event: Event, done: int) -> Event:
    """What is left of an event of which so many blocks are done. The last of these has the key that the event gives it: the next chains from it."""
    if isinstance(event, Stored):
        tokens = event.tokens[done * event.block_size * TOKEN_BYTES :]
        extra_keys = {position - done: extra for position, extra in (event.extra_keys or {}).items() if position >= done}
        return structs.replace(event, hashes=event.hashes[done:], parent=event.hashes[done - 1], tokens=tokens, extra_keys=extra_keys or None)
    assert isinstance(event, Removed), "a clear is not begun"
    return structs.replace(event, hashes=event.hashes[done:])
