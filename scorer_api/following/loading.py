"""Loading one stream: a snapshot of its state, its blocks in pieces, then the entries of the log since."""

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping

from indexer.core.change import Change, HashMapping
from indexer.core.events import Tier
from indexer.core.groups import LEAD, CacheShape
from indexer.core.key_claims import KeyClaims, make_key_claims
from indexer.core.names import Trust
from indexer.core.places import REMOVED
from indexer.store.reader import LOG_START, LogOffset, StateVersion
from indexer.store.records import Entry, change_of, decode_hash, keys_of_block, slot_of_field, unpack_keys
from scorer_api.following.followed_model import FollowerContext
from scorer_api.following.followed_stream import FollowedStream, Verdict, judge, version_after
from scorer_api.index.holding import Holding

# Fields that one command reads: well below a millisecond of Redis, and of the event loop.
PIECE_FIELDS = 1_000
# Entries are applied so long at a stretch before requests have their turn.
TURN_S = 0.002
BLOCK_BYTES_MIN = 18


class Loading:
    """One load of one stream into a separate holding: the old one keeps serving.

    What `read` found: `is_missing`, where there is no such stream; else `version`, None where that cannot be read, `holding`, None where it holds
    nothing, `offset` and `trust`. Where it is not `is_whole` something came in between, and the holding has to be given back.
    """

    def __init__(self, stream: FollowedStream, context: FollowerContext) -> None:
        self.holding: Holding | None = None
        self.version: StateVersion | None = None
        self.offset: LogOffset = LOG_START
        self.trust = Trust.STALE
        self.hash_seed: str | None = None
        """What the block keys are made with; None where that cannot be read."""
        self.is_missing = False
        self.is_whole = False
        self._stream = stream
        self._reader, self._view, self._metrics = context.reader, context.view, context.metrics

    async def read(self) -> None:
        """Raises StoreError."""
        stream, server_epoch = self._stream, self._reader.server_epoch
        stream.begin_buffering()
        snapshot = await self._reader.snapshot(stream.key)
        self.offset = snapshot.offset
        self.is_missing = snapshot.version is None
        if snapshot.version is not None and snapshot.head is not None:
            self.version, self.trust, self.hash_seed = snapshot.version, snapshot.head.trust, snapshot.head.hash_seed
            traits = snapshot.head.traits
            if traits.shape is not None:
                self.holding = self._view.hold_apart(stream.key, traits.shape)
                await self._read_blocks(self.holding, traits.shape, snapshot.version.generation, may_be_ambiguous=not traits.announces_extra_keys)
                if not await self._is_still_there(snapshot.version):
                    return
            if not await self._catch_up():
                return
        # Else it may be half of one server and half of another.
        self.is_whole = not stream.must_load_again and server_epoch == self._reader.server_epoch

    async def _is_still_there(self, version: StateVersion) -> bool:
        """Whether Redis has what was read, or what follows it. Where it restarted from an older file meanwhile, the rest was read from that."""
        found = (await self._reader.snapshot(self._stream.key)).version
        return found is not None and found.generation == version.generation and found.number >= version.number

    async def _read_blocks(self, holding: Holding, shape: CacheShape, generation: int, *, may_be_ambiguous: bool) -> None:
        key = self._stream.key
        names = self._reader.keyspace.of(key).parts(key, generation)
        claims = make_key_claims()
        for tier, name in zip(Tier, names, strict=False):
            cursor = 0
            while not self._stream.must_load_again:
                cursor, fields = await self._reader.blocks(name, cursor, PIECE_FIELDS)
                change = Change()
                for slot, blocks in self._by_slot(fields, shape).items():
                    change.touched_of(slot)[tier].update(dict.fromkeys(self._keys(blocks), True))
                change.hash_mapping = self._mapping(holding, fields)
                holding.apply(change, shape)
                self._metrics.loaded_blocks.inc(len(fields))
                if may_be_ambiguous:
                    self._claim(claims, fields)
                if not cursor:
                    break
        if holding.hashes is not None:
            await self._read_removed(holding, shape, names[REMOVED])
        if claims.ambiguous:
            change = Change()
            for slot in range(len(shape.groups)):
                for touched in change.touched_of(slot):
                    touched.update(dict.fromkeys(claims.ambiguous, False))
            holding.apply(change, shape)

    async def _read_removed(self, holding: Holding, shape: CacheShape, name: str) -> None:
        """The engine hashes of blocks that a lower tier may yet name."""
        cursor = 0
        while not self._stream.must_load_again:
            cursor, fields = await self._reader.blocks(name, cursor, PIECE_FIELDS)
            change = Change()
            change.hash_mapping = self._mapping(holding, fields)
            holding.apply(change, shape)
            if not cursor:
                return

    @staticmethod
    def _by_slot(fields: Mapping[bytes, bytes], shape: CacheShape) -> dict[int, Collection[bytes]]:
        """Slot → blocks. `fields`: engine hash and slot → block."""
        if len(shape.groups) < 2:
            # A group that came while this was read is in the entries since.
            return {LEAD: fields.values() if not any(map(slot_of_field, fields)) else [fields[field] for field in fields if not slot_of_field(field)]}
        by_slot: dict[int, list[bytes]] = {slot: [] for slot in range(len(shape.groups))}
        for field, block in fields.items():
            by_slot.setdefault(slot_of_field(field), []).append(block)
        return {slot: blocks for slot, blocks in by_slot.items() if slot < len(shape.groups)}

    @staticmethod
    def _mapping(holding: Holding, fields: Mapping[bytes, bytes]) -> HashMapping | None:
        """The block keys of these fields' engine hashes; None where engine hashes are not kept."""
        if holding.hashes is None:
            return None
        found = {decode_hash(field): keys_of_block(block)[:8] for field, block in fields.items() if len(block) >= BLOCK_BYTES_MIN}
        return HashMapping({engine_hash: int.from_bytes(key, "little") for engine_hash, key in found.items()}, [])

    @staticmethod
    def _claim(claims: KeyClaims, fields: Mapping[bytes, bytes]) -> None:
        """Note the block keys of engine hashes. `fields`: engine hash → block."""
        for engine_hash, block in fields.items():
            if len(block) >= BLOCK_BYTES_MIN:
                claims.claim(decode_hash(engine_hash), int.from_bytes(keys_of_block(block)[:8], "little"))

    def _keys(self, blocks: Iterable[bytes]) -> list[int]:
        """The block keys of these blocks. What is no block is counted and passed over."""
        try:
            return unpack_keys(b"".join(map(keys_of_block, blocks)))
        except ValueError:
            pass
        found: list[int] = []
        for block in blocks:
            try:
                found += unpack_keys(keys_of_block(block))
            except ValueError:
                self._metrics.entries["unreadable"].inc()
        return found

    async def _catch_up(self) -> bool:
        """Apply the entries since. Returns whether they all follow. Nothing waits between the last one and the return."""
        buffered = self._stream.buffered
        assert buffered is not None, "entries are buffered while a load runs"
        began_s = time.monotonic()
        while buffered:
            offset, entry = buffered.popleft()
            if offset <= self.offset:
                continue
            if judge(self.version, entry) is not Verdict.APPLY or not self._apply(entry):
                return False
            self.version, self.offset, self.trust = version_after(entry), offset, entry.trust
            if time.monotonic() - began_s > TURN_S:
                await asyncio.sleep(0)
                began_s = time.monotonic()
        return True

    def _apply(self, entry: Entry) -> bool:
        """Returns whether the entry fits what was read."""
        try:
            change = change_of(entry)
        except ValueError:
            return False
        if not change or entry.shape is None:
            return True
        if self.holding is None:
            self.holding = self._view.hold_apart(self._stream.key, entry.shape)
        if self.holding.holders.cut != entry.shape.cut:
            return False
        self.holding.apply(change, entry.shape)
        return True
