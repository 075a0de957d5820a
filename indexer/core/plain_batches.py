"""Batches that came packed: the compiled core applies what is plain in them, event by event, and the rest is left to the caller."""

from collections.abc import Callable, Iterator
from typing import Any

from indexer.compiled import core
from indexer.core.events import Event, PlainEvents, Removed, Stored, Tier
from indexer.core.held_blocks import HeldBlocks
from indexer.core.token_sample import TokenSample

GPU = Tier.GPU

PACKED = None if core is None else core.PlainEvents
"""The type of such a batch; None without the compiled core."""


def odd_events(
    events: PlainEvents,
    blocks: HeldBlocks,
    sample: TokenSample,
    removed: dict[Tier, int],
    roots: Callable[[tuple[Any, ...]], tuple[int, int] | None],
) -> Iterator[Event]:
    """Applies the events to `blocks`, and says which ones the caller has to apply, each in its turn.

    `roots`: of `PlainEvents.said`, which of it is the lead group's, as bits, and the key before the first block of a prompt; None while nothing in
    the stream is plain. `sample`, `removed`: what else an event changes.
    """
    position = 0
    while position < len(events):
        found = roots(events.said)
        if found is not None:
            played = blocks.play(events, position, *found, sample.until_next - 1)
            position = played.position
            sample.until_next -= played.stored
            if played.removed:
                removed[GPU] += played.removed
            if position == len(events):
                return
            if played.blocks:
                event = events[position]
                blocks.finish(event, played)
                if isinstance(event, Stored):
                    sample.until_next -= 1
                elif isinstance(event, Removed):
                    removed[GPU] += len(event.hashes)
                position += 1
                continue
        yield events[position]
        position += 1
