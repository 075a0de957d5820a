"""Full write: all that a stream holds goes, piece by piece, into hashes of a new generation that is not read yet."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from redis.exceptions import TimeoutError as RedisTimeoutError

from indexer.core.places import slot_and_part
from indexer.store.client.connection import Client, answer_of
from indexer.store.encoding import PlaceRecords, words_of
from indexer.store.pending import PendingWrites

# Fields of one command: well below a millisecond of Redis.
PIECE_FIELDS = 500
ROUND_FIELDS_MAX = 8 * PIECE_FIELDS
# A few kilobytes: a Redis that takes longer than the timeout for these cannot keep up with a stream either.
ROUND_FIELDS_MIN = 125
# A round that takes this part of the timeout leaves time for one of twice the fields, and for noise.
QUICK_PART = 0.25

# So many generations are left to the switch to delete.
GENERATIONS_MAX = 16

T = TypeVar("T")


class Pace:
    """How many fields a round has: fewer after one that took longer than `timeout_s`. A write begins anew then, with a new generation, since what
    was not answered may still be carried out, later than what would follow it.
    """

    def __init__(self, timeout_s: float) -> None:
        self.fields = ROUND_FIELDS_MAX
        self._quick_s = QUICK_PART * timeout_s

    def note_round(self, took_s: float) -> None:
        """A round was answered."""
        if took_s < self._quick_s:
            self.grow()

    def note_timeout(self, fields: int) -> None:
        """A round of so many fields was not answered in time."""
        self.fields = max(ROUND_FIELDS_MIN, min(self.fields, fields) // 2)

    def grow(self) -> None:
        """Also after each write that was done: a long way to Redis makes no round quick."""
        self.fields = min(ROUND_FIELDS_MAX, 2 * self.fields)


async def write_generation(client: Client, pending: PendingWrites, pace: Pace, is_wanted: Callable[[], bool]) -> int | None:
    """Write the stream as a new generation. Returns it; what has changed most recently, `pace.fields` at most, is not in it yet. None where the write
    was given up.

    Raises redis.exceptions.RedisError.
    """
    await _delete_oldest(client, pending)
    generation = pending.begin_full_write()
    names, snapshot = pending.keys.parts(pending.key, generation), pending.encoder.snapshot
    for place in snapshot.places():
        for hashes in _in_rounds(snapshot.hashes(place), pace):
            # Read when it is written: what changes later is among the pending fields.
            pieces = [snapshot.records(place, piece) for piece in _in_pieces(hashes)]
            if not await _write(client, pending, names, place, pieces, pace, is_wanted):
                return None
    while pending.operations > pace.fields:
        for place, records in pending.take_records().items():
            for some in _in_rounds(list(records.items()), pace):
                if not await _write(client, pending, names, place, [dict(piece) for piece in _in_pieces(some)], pace, is_wanted):
                    return None
    return generation


async def _delete_oldest(client: Client, pending: PendingWrites) -> None:
    """Delete what most of the attempts left that were given up. Raises redis.exceptions.RedisError: then there is no further one."""
    oldest = list(pending.old_generations)[:-GENERATIONS_MAX]
    for start in range(0, len(oldest), GENERATIONS_MAX):
        some = oldest[start : start + GENERATIONS_MAX]
        await answer_of(client.unlink(*(name for number in some for name in pending.keys.parts(pending.key, number))))
        for number in some:
            del pending.old_generations[number]


def _in_rounds(items: Sequence[T], pace: Pace) -> Iterator[Sequence[T]]:
    start = 0
    while start < len(items):
        some = items[start : start + pace.fields]
        start += len(some)
        yield some


def _in_pieces(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + PIECE_FIELDS] for start in range(0, len(items), PIECE_FIELDS))


async def _write(
    client: Client, pending: PendingWrites, names: list[str], place: int, pieces: Sequence[PlaceRecords], pace: Pace, is_wanted: Callable[[], bool]
) -> bool:
    """Returns whether to go on."""
    name = names[slot_and_part(place)[1]]
    if pending.needs_full_write or pending.is_expired or not is_wanted():
        return False
    pipeline = client.pipeline(transaction=False)
    for piece in pieces:
        sets, dels = words_of(place, piece)
        if sets:
            pipeline.execute_command("HSET", name, *sets)
        if dels:
            pipeline.execute_command("HDEL", name, *dels)
    # All parts: what was written first has to last until the switch, however long the others take.
    for each in names:
        pipeline.pexpire(each, pending.ttl_ms[1])
    started_s = time.monotonic()
    try:
        await answer_of(pipeline.execute())
    except RedisTimeoutError:
        pace.note_timeout(sum(map(len, pieces)))
        raise
    pace.note_round(time.monotonic() - started_s)
    return not pending.needs_full_write
