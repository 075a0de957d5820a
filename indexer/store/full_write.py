"""Full write: all that a stream holds goes, piece by piece, into hashes of a new generation that is not read yet."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from indexer.core.places import slot_and_part
from indexer.store.client.connection import Client, answer_of
from indexer.store.encoding import PlaceRecords, words_of
from indexer.store.pending import PendingWrites

# Fields of one command: well below a millisecond of Redis.
PIECE_FIELDS = 500
ROUND_FIELDS = 8 * PIECE_FIELDS

T = TypeVar("T")


async def write_generation(client: Client, pending: PendingWrites, is_wanted: Callable[[], bool]) -> int | None:
    """Write the stream as a new generation. Returns it; what has changed most recently is not in it yet. None where the write was given up.

    Raises redis.exceptions.RedisError.
    """
    generation = pending.begin_full_write()
    names, snapshot = pending.keys.parts(pending.key, generation), pending.encoder.snapshot
    for place in snapshot.places():
        for hashes in _in_pieces(snapshot.hashes(place), ROUND_FIELDS):
            # Read when it is written: what changes later is among the pending fields.
            pieces = [snapshot.records(place, piece) for piece in _in_pieces(hashes, PIECE_FIELDS)]
            if not await _write(client, pending, names, place, pieces, is_wanted):
                return None
    while pending.operations > ROUND_FIELDS:
        for place, records in pending.take_records().items():
            for some in _in_pieces(list(records.items()), ROUND_FIELDS):
                if not await _write(client, pending, names, place, [dict(piece) for piece in _in_pieces(some, PIECE_FIELDS)], is_wanted):
                    return None
    return generation


def _in_pieces(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


async def _write(
    client: Client, pending: PendingWrites, names: list[str], place: int, pieces: Iterable[PlaceRecords], is_wanted: Callable[[], bool]
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
    pipeline.pexpire(name, pending.ttl_ms[1])
    await answer_of(pipeline.execute())
    return not pending.needs_full_write
