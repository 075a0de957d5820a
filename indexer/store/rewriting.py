"""Writing all that a stream holds, piece by piece, into hashes that nobody reads yet."""

from collections.abc import Callable

from indexer.store.client.connection import Client, answer_of
from indexer.store.keyspace import PARTS
from indexer.store.writer import StreamWriter

# Fields of one command: well below a millisecond of Redis.
PIECE_FIELDS = 500
PIECES_PER_ROUND = 8


async def write_generation(client: Client, writer: StreamWriter, is_wanted: Callable[[], bool]) -> int | None:
    """Write the stream as a new generation. Returns it, all but what has changed most recently; None where something made that void.

    Raises redis.exceptions.RedisError.
    """
    generation = writer.begin_all()
    names = writer.keys.parts(writer.key, generation)
    for part, name in enumerate(names):
        if not await _write_fields(client, writer, name, part, writer.hashes(part), is_wanted):
            return None
    while writer.operations > PIECE_FIELDS * PIECES_PER_ROUND:
        touched = writer.stream.state.track()
        for part in range(len(PARTS)):
            if not await _write_fields(client, writer, names[part], part, list(touched[part]), is_wanted):
                return None
    return generation


async def _write_fields(client: Client, writer: StreamWriter, name: str, part: int, hashes: list[int], is_wanted: Callable[[], bool]) -> bool:
    """Returns whether that still makes sense."""
    step = PIECE_FIELDS * PIECES_PER_ROUND
    for start in range(0, len(hashes), step):
        if writer.needs_all or writer.is_absent or not is_wanted():
            return False
        pipeline = client.pipeline(transaction=False)
        for first in range(start, min(start + step, len(hashes)), PIECE_FIELDS):
            sets: list[bytes] = []
            dels: list[bytes] = []
            for field, value in writer.fields(part, hashes[first : first + PIECE_FIELDS]):
                if value is None:
                    dels.append(field)
                else:
                    sets += (field, value)
            if sets:
                pipeline.execute_command("HSET", name, *sets)
            if dels:
                pipeline.execute_command("HDEL", name, *dels)
        pipeline.pexpire(name, writer.ttl_ms[1])
        await answer_of(pipeline.execute())
    return not writer.needs_all
