"""Full write: all that a stream holds goes, piece by piece, into hashes of a new generation that nobody reads yet."""

from collections.abc import Callable

from indexer.store.client.connection import Client, answer_of
from indexer.store.keyspace import PARTS
from indexer.store.pending import PendingWrites

# Fields of one command: well below a millisecond of Redis.
PIECE_FIELDS = 500
PIECES_PER_ROUND = 8


async def write_generation(client: Client, pending: PendingWrites, is_wanted: Callable[[], bool]) -> int | None:
    """Write the stream as a new generation. Returns it; what has changed most recently is not in it yet. None where the write was given up.

    Raises redis.exceptions.RedisError.
    """
    generation = pending.begin_full_write()
    names = pending.keys.parts(pending.key, generation)
    for part, name in enumerate(names):
        if not await _write_fields(client, pending, name, part, pending.encoder.hashes(part), is_wanted):
            return None
    while pending.operations > PIECE_FIELDS * PIECES_PER_ROUND:
        touched = pending.stream.state.track()
        for part in range(len(PARTS)):
            if not await _write_fields(client, pending, names[part], part, list(touched[part]), is_wanted):
                return None
    return generation


async def _write_fields(client: Client, pending: PendingWrites, name: str, part: int, hashes: list[int], is_wanted: Callable[[], bool]) -> bool:
    """Returns whether to go on."""
    step = PIECE_FIELDS * PIECES_PER_ROUND
    for start in range(0, len(hashes), step):
        if pending.needs_full_write or pending.is_expired or not is_wanted():
            return False
        pipeline = client.pipeline(transaction=False)
        for first in range(start, min(start + step, len(hashes)), PIECE_FIELDS):
            sets: list[bytes] = []
            dels: list[bytes] = []
            for field, value in pending.encoder.fields(part, hashes[first : first + PIECE_FIELDS]):
                if value is None:
                    dels.append(field)
                else:
                    sets += (field, value)
            if sets:
                pipeline.execute_command("HSET", name, *sets)
            if dels:
                pipeline.execute_command("HDEL", name, *dels)
        pipeline.pexpire(name, pending.ttl_ms[1])
        await answer_of(pipeline.execute())
    return not pending.needs_full_write
