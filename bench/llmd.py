"""An index in Redis as that of llm-d, to compare with. Written from its description, not from its code.

    {block key}            HASH  pod entry in JSON → empty      which pods hold the block
    engine:{engine hash}   ZSET  block key, by its position     which blocks an engine hash stands for

    store     per event a ZRANGE for the parent's block key, then one pipeline of a ZADD and an HSET for each block
    removal   per engine hash a ZRANGE for its block keys, then HDEL of the pod's entry, and two EVALSHA: one drops the hash of a block where it is
              empty, one the engine hash where nobody holds any of its blocks
    look-up   one pipeline of an HKEYS for each block of the prompt, all of them; entries are decoded and matched in the client
    clear     SCAN of the database, HKEYS of every block's hash, HDEL of the pod's entries; engine hashes stay

Where the description leaves a choice it is the cheaper one: a pod's entry is as short as it can be, HDEL and both EVALSHA of a removal go in one
pipeline, SCAN takes 1,000 names at a time, and pipelines are no transactions.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import redis
from msgspec import Struct

from bench.workload import BLOCK_SIZE, MODEL
from indexer.core.block_keys import chain_keys, root_key
from indexer.core.events import Cleared, Removed, Stored
from indexer.limits import WireLimits
from indexer.wire.decoder import WireDecoder

ENGINE = b"engine:"
SCAN_COUNT = 1_000
PRUNE_BLOCK = """
if redis.call('HLEN', KEYS[1]) == 0 then return redis.call('DEL', KEYS[1]) end
return 0
"""
# KEYS: the engine hash, and its blocks.
PRUNE_ENGINE = """
for position = 2, #KEYS do
  if redis.call('EXISTS', KEYS[position]) == 1 then return 0 end
end
return redis.call('DEL', KEYS[1])
"""


class PodEntry(Struct, frozen=True, rename="camel"):
    """What a field of a block's hash says."""

    pod_identifier: str
    device_tier: str


_decode_entry = msgspec.json.Decoder(PodEntry).decode


class LlmdIndex:
    """What every pod holds of one model, on the gpu."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._decoder = WireDecoder(WireLimits())
        self._root = root_key(MODEL, None, "")
        self._prune_block, self._prune_engine = client.script_load(PRUNE_BLOCK), client.script_load(PRUNE_ENGINE)

    def apply(self, pod: str, payload: bytes) -> None:
        """Decode one batch of a pod and apply its events in order."""
        for event in self._decoder.decode(payload).events:
            match event:
                case Stored():
                    self._store(pod, event)
                case Removed():
                    self._remove(pod, event.hashes)
                case Cleared():
                    self._clear(pod)

    def _store(self, pod: str, event: Stored) -> None:
        parent = self._root if event.parent is None else int(_members(self._client.zrange(_engine(event.parent), -1, -1))[0])
        keys = chain_keys(parent, event.tokens, event.block_size, event.extra_keys)
        entry = _entry(pod)
        pipeline = self._client.pipeline(transaction=False)
        for engine_hash, key in zip(event.hashes, keys, strict=True):
            pipeline.execute_command("ZADD", _engine(engine_hash), 0, key)
            pipeline.execute_command("HSET", key, entry, b"")
        pipeline.execute()

    def _remove(self, pod: str, hashes: Iterable[int]) -> None:
        entry = _entry(pod)
        for engine_hash in hashes:
            engine = _engine(engine_hash)
            keys = _members(self._client.zrange(engine, 0, -1))
            pipeline = self._client.pipeline(transaction=False)
            for key in keys:
                pipeline.execute_command("HDEL", key, entry)
                pipeline.execute_command("EVALSHA", self._prune_block, 1, key)
            pipeline.execute_command("EVALSHA", self._prune_engine, 1 + len(keys), engine, *keys)
            pipeline.execute()

    def _clear(self, pod: str) -> None:
        cursor = 0
        while True:
            cursor, names = self._client.scan(cursor, count=SCAN_COUNT)
            keys = [name for name in names if isinstance(name, bytes) and not name.startswith(ENGINE)]
            pipeline = self._client.pipeline(transaction=False)
            for key, fields in zip(keys, self._fields(keys), strict=True):
                if own := [field for field in fields if _decode_entry(field).pod_identifier == pod]:
                    pipeline.execute_command("HDEL", key, *own)
            pipeline.execute()
            if not cursor:
                return

    def _fields(self, keys: Sequence[int | bytes]) -> list[list[bytes]]:
        """The fields of each of these hashes, in one round trip."""
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.execute_command("HKEYS", key)
        return pipeline.execute()

    def look_up(self, tokens: bytes, blocks: int) -> dict[str, int]:
        """How many of a prompt's first blocks each pod holds, one behind the other; without those that hold none. `tokens`: little-endian uint32."""
        keys = chain_keys(self._root, tokens, BLOCK_SIZE, stop=blocks)
        holders = [{_decode_entry(field).pod_identifier for field in fields} for fields in self._fields(keys)]
        matched: dict[str, int] = {}
        alive = holders[0]
        for number, held_by in enumerate(holders):
            if not alive <= held_by:
                matched.update(dict.fromkeys(alive - held_by, number))
                alive = alive & held_by
        return matched | dict.fromkeys(alive, blocks)


def _members(answer: Any) -> list[bytes]:
    """What ZRANGE answers without scores."""
    return list(answer)


def _engine(engine_hash: int) -> bytes:
    return b"%s%d" % (ENGINE, engine_hash)


def _entry(pod: str) -> bytes:
    return msgspec.json.encode(PodEntry(pod, "gpu"))
