"""Large events cut into smaller ones of the same meaning, so that applying each takes a few milliseconds. Pure."""

from collections.abc import Generator, Iterator
from typing import TypeVar

from msgspec import structs

from indexer.core.block_keys import TOKEN_BYTES
from indexer.core.events import Event, Removed, Stored, Tier

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Work in steps of a few milliseconds at most, one for each `next`; it ends with a result."""


def result_of(steps: Steps[T]) -> T:
    """Carry out all steps at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def pieces_of(event: Event, hashes_max: int, key_size: int) -> Iterator[Event]:
    """The pieces of an event, in order, of at most so many hashes: the event itself where it means more than its blocks one after another.

    `key_size`: tokens between two block keys, 0 while that is not known.
    """
    if isinstance(event, Removed) and len(event.hashes) > hashes_max:
        for start in range(0, len(event.hashes), hashes_max):
            yield structs.replace(event, hashes=event.hashes[start : start + hashes_max])
    elif isinstance(event, Stored) and len(event.hashes) > hashes_max and _is_uniform(event, key_size):
        for start in range(0, len(event.hashes), hashes_max):
            yield piece_of(event, start, start + hashes_max)
    else:
        yield event


def piece_of(event: Stored, start: int, end: int) -> Stored:
    """The blocks from one position up to another, as an event that follows the blocks before."""
    end = min(end, len(event.hashes))
    width = event.block_size * TOKEN_BYTES
    told = event.extra_keys
    extra_keys = {position - start: told[position] for position in range(start, end) if position in told} if told else None
    return structs.replace(
        event,
        hashes=event.hashes[start:end],
        parent=event.hashes[start - 1] if start else event.parent,
        tokens=event.tokens[start * width : end * width],
        extra_keys=extra_keys or None,
    )


def _is_uniform(event: Stored, key_size: int) -> bool:
    """Whether each block is stored as the others are. Below the gpu an event whose extra keys are not told is judged as a whole: its hashes may be
    foreign. So is one of larger blocks with extra keys: from the first of them on the keys are not told."""
    is_told = event.tier is Tier.GPU or event.lists_extra_keys or not event.tokens
    is_cut_by_keys = not (event.extra_keys or event.lookahead) or event.block_size == key_size
    return is_told and is_cut_by_keys and not (event.sparse_tokens or event.state_tokens)
