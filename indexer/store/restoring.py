"""Reading what a stream's former owner wrote."""

import time
from collections.abc import Iterable
from typing import cast

from indexer.core.events import Tier
from indexer.core.orphans import Parked
from indexer.core.stream_state import PARKED, REMOVED, BlockRecord, StreamState
from indexer.store.client.connection import Client, answer_of
from indexer.store.records import Head, decode_block, decode_hash, decode_parked

# Fields that one command reads: well below a millisecond of Redis.
PIECE_FIELDS = 500


async def read_hash(client: Client, name: str) -> dict[bytes, bytes]:
    """A whole hash, in pieces. Raises redis.exceptions.RedisError."""
    found: dict[bytes, bytes] = {}
    cursor = 0
    while True:
        cursor, piece = await answer_of(client.hscan(name, cursor, count=PIECE_FIELDS))
        found.update(cast(dict[bytes, bytes], piece))
        if not cursor:
            return found


def _blocks(fields: dict[bytes, bytes]) -> Iterable[tuple[int, BlockRecord]]:
    return ((decode_hash(field), decode_block(value)) for field, value in fields.items())


def restore(state: StreamState, head: Head, fields: list[dict[bytes, bytes]]) -> None:
    """Raises ValueError, msgspec.DecodeError for what is not readable."""
    state.restore(head.traits, [(tier, _blocks(fields[tier])) for tier in Tier], _blocks(fields[REMOVED]))
    _park(state, fields[PARKED])


def _park(state: StreamState, fields: dict[bytes, bytes]) -> None:
    now_s, now_ms = time.monotonic(), time.time() * 1000
    records = sorted(((decode_hash(field), decode_parked(value)) for field, value in fields.items()), key=lambda item: item[1].since_ms)
    for engine_hash, record in records:
        parked: Parked = state.orphans.park(engine_hash, record.parent, record.tokens, record.extra, now_s - (now_ms - record.since_ms) / 1000)
        parked.copies.update({Tier(tier): count for tier, count in record.copies.items()})
