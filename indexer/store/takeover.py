"""Reading what a stream's former owner wrote."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import cast

import msgspec
from redis.exceptions import RedisError

from indexer.core.block_table import BlockRecord
from indexer.core.events import Tier
from indexer.core.foreign_copy import ForeignCopy
from indexer.core.groups import LEAD
from indexer.core.names import StreamKey
from indexer.core.places import FOREIGN, PARKED, REMOVED, place_of, slot_and_part
from indexer.core.stream_state import StreamState
from indexer.errors import StoreError
from indexer.store.client.connection import Client, answer_of, server_epoch_of
from indexer.store.leases import Claim, Leases
from indexer.store.records import Head, decode_block, decode_foreign, decode_hash, decode_parked, slot_of_field
from indexer.store.session import StoreSession

log = logging.getLogger(__name__)

# Fields that one command reads: well below a millisecond of Redis.
PIECE_FIELDS = 500

FOREIGN_SLOT = slot_and_part(FOREIGN)[0]


async def load(session: StoreSession, leases: Leases, claim: Claim, stream: StreamKey, state: StreamState) -> Head | None:
    """Let the state hold what Redis has of a stream. Returns the head to go on from; None where it starts from nothing. Raises StoreError."""
    head = claim.head
    if claim.generation is None or head is None or (head.counting, head.hash_seed) != (state.counting, session.settings.hash_seed):
        return None
    parts, epoch = session.keyspace.of(stream).parts(stream, claim.generation), server_epoch_of(session.client)
    renewing = asyncio.create_task(leases.extend(stream), name=f"renew {stream.pod} {stream.rank}")
    try:
        fields = [await _read_hash(session.client, part) for part in parts]
        if epoch != server_epoch_of(session.client):
            raise StoreError("unreachable")  # what was read may be half of one server and half of another
        if tuple(map(len, fields)) != claim.lengths:
            log.warning("blocks missing in redis", extra={"pod": stream.pod, "rank": stream.rank})
            return None
        # A million blocks take seconds: in the event loop the leases of all other streams would run out meanwhile.
        await asyncio.to_thread(_restore, state, head, fields)
    except RedisError as error:
        raise session.failed(error, parts[0]) from error
    except (ValueError, msgspec.DecodeError) as error:
        log.warning("blocks in redis not readable", extra={"pod": stream.pod, "rank": stream.rank, "error": str(error)})
        state.forget()
        return None
    finally:
        renewing.cancel()
    return head


async def _read_hash(client: Client, name: str) -> dict[bytes, bytes]:
    """A whole hash, in pieces. Raises redis.exceptions.RedisError."""
    found: dict[bytes, bytes] = {}
    cursor = 0
    while True:
        cursor, piece = await answer_of(client.hscan(name, cursor, count=PIECE_FIELDS))
        found.update(cast(dict[bytes, bytes], piece))
        if not cursor:
            return found


def _restore(state: StreamState, head: Head, fields: list[dict[bytes, bytes]]) -> None:
    """Raises ValueError, msgspec.DecodeError for what is not readable."""
    slots = range(1 if head.traits.shape is None else max(1, len(head.traits.shape.groups)))
    places = [(place_of(slot, tier), _blocks(fields[tier], slot)) for tier in Tier for slot in slots]
    state.restore(head.traits, places, _blocks(fields[REMOVED]))
    _park(state, fields[PARKED])


def _blocks(fields: dict[bytes, bytes], slot: int = 0) -> Iterable[tuple[int, BlockRecord]]:
    return ((decode_hash(field), decode_block(value)) for field, value in fields.items() if slot_of_field(field) == slot)


def _park(state: StreamState, fields: dict[bytes, bytes]) -> None:
    """Let wait what waited, the longest first."""
    now_s, now_ms = time.monotonic(), time.time() * 1000

    def since_s(since_ms: int) -> float:
        return now_s - max(0.0, now_ms - since_ms) / 1000  # the clock of who wrote it may be ahead

    by_slot: defaultdict[int, list[tuple[int, bytes]]] = defaultdict(list)
    for field, value in fields.items():
        by_slot[slot_of_field(field)].append((decode_hash(field), value))
    for engine_hash, record in sorted(((key, decode_parked(value)) for key, value in by_slot[LEAD]), key=lambda item: item[1].since_ms):
        state.orphans.park(engine_hash, record.parent, record.tokens, record.extra, since_s(record.since_ms))
        for of, count in record.copies.items():
            state.orphans.add_copies(engine_hash, of, count)
    for engine_hash, found in sorted(((key, decode_foreign(value)) for key, value in by_slot[FOREIGN_SLOT]), key=lambda item: item[1].since_ms):
        copy = ForeignCopy(found.parent, found.root, found.tokens, found.place, since_s(found.since_ms), found.keys)
        state.foreign.restore(engine_hash, copy)
