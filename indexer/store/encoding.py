"""What one stream holds, as words of scripts: blocks to set and delete, the head of its state, entries of the log."""

import time
from collections.abc import Iterable, Iterator
from typing import Protocol

from indexer.config.settings import Settings
from indexer.core.block_table import PARKED, REMOVED, Touched
from indexer.core.change import Change, HashMapping
from indexer.core.events import Tier
from indexer.core.names import StreamKey
from indexer.core.store import Point
from indexer.core.stream_state import StreamState
from indexer.store.keyspace import PARTS, stream_id
from indexer.store.records import (
    Entry,
    Head,
    Kind,
    ParkedRecord,
    encode_entry,
    encode_hash,
    encode_head,
    encode_parked,
    encode_plain,
    encode_record,
    pack_mapping,
    pack_tiers,
)
from indexer.store.scripts import Word

Version = tuple[int, int]
"""Fence and number: with the generation they name one state of a stream."""


class RecordedStream(Protocol):
    """What is read of a stream whose content is kept in Redis."""

    key: StreamKey

    @property
    def state(self) -> StreamState: ...

    @property
    def is_connected(self) -> bool: ...

    def point(self) -> Point: ...


class StreamEncoder:
    """Values are those of the moment of the call."""

    def __init__(self, stream: RecordedStream, settings: Settings) -> None:
        self.name = stream_id(stream.key)
        self._stream = stream
        self._settings = settings

    def hashes(self, part: int) -> list[int]:
        """The engine hashes that a part holds."""
        state = self._stream.state
        if part == PARKED:
            return list(state.orphans)
        return state.table.removed_hashes() if part == REMOVED else state.table.hashes(Tier(part))

    def fields(self, part: int, hashes: Iterable[int]) -> Iterator[tuple[bytes, bytes | None]]:
        """Field and value of these engine hashes in a part; None for those that are not held."""
        if part == PARKED:
            yield from self._parked_fields(hashes)
            return
        state = self._stream.state
        for engine_hash in hashes:
            found = state.table.removed_record(engine_hash) if part == REMOVED else state.table.record(Tier(part), engine_hash)
            yield encode_hash(engine_hash), None if found is None else encode_record(found)

    def _parked_fields(self, hashes: Iterable[int]) -> Iterator[tuple[bytes, bytes | None]]:
        now_s, now_ms = time.monotonic(), time.time() * 1000
        for engine_hash in hashes:
            parked = self._stream.state.orphans.get(engine_hash)
            if parked is None:
                yield encode_hash(engine_hash), None
            else:
                since_ms = int(now_ms - (now_s - parked.since_s) * 1000)
                copies = {int(tier): count for tier, count in parked.copies.items()}
                yield encode_hash(engine_hash), encode_parked(ParkedRecord(parked.parent, parked.tokens, parked.extra, since_ms, copies))

    def words(self, touched: Touched) -> tuple[list[Word], int]:
        """What to set and delete, as prelude.lua reads it, and how many more fields there are afterwards, at most."""
        plain, gone = self._gpu_words(touched[Tier.GPU])
        words: list[Word] = [b"".join(plain), 0, b"".join(gone)]
        growth = len(plain) - len(gone)
        for part in range(1, len(PARTS)):
            sets: list[Word] = []
            dels: list[bytes] = []
            for field, value in self.fields(part, touched[part]):
                if value is None:
                    dels.append(field)
                else:
                    sets += (field, value)
            growth += len(sets) // 2 - len(dels)
            words += (b"", len(sets), *sets, b"".join(dels))
        return words, growth

    def _gpu_words(self, touched: Iterable[int]) -> tuple[list[bytes], list[bytes]]:
        """The same of the gpu's part, which is nearly all that there is."""
        blocks = self._stream.state.table.held
        plain: list[bytes] = []
        gone: list[bytes] = []
        for engine_hash in touched:
            block = blocks.get(engine_hash)
            if block is None or not block.copies:
                gone.append(encode_hash(engine_hash))
            else:
                plain.append(encode_plain(engine_hash, block.copies, block.parent, block.key))
        return plain, gone

    def hash_mapping(self, touched: Touched) -> HashMapping:
        """Which block keys these engine hashes stand for."""
        state, keys, removed_hashes = self._stream.state, {}, []
        for part in (*Tier, REMOVED):
            for engine_hash in touched[part]:
                key = state.table.mapped_key(engine_hash)
                if key is None:
                    removed_hashes.append(engine_hash)
                else:
                    keys[engine_hash] = key
        return HashMapping(keys, removed_hashes)

    def head(self) -> bytes:
        """How far the stream's content goes, and how it was made."""
        point, settings, state = self._stream.point(), self._settings, self._stream.state
        traits = state.traits()
        head = Head(point.sequence, point.fingerprint, point.complete, point.trust, state.counting, settings.hash_seed, traits, point.is_simulator)
        return encode_head(head)

    def entry(self, kind: Kind, generation: int, version: Version, follows: Version, change: Change | None = None) -> bytes:
        """An entry of the log. `version`: the state's after it; `follows`: the one that it follows."""
        block_size = self._stream.state.block_size
        tiers = () if change is None else pack_tiers(change.touched)
        cleared = change is not None and change.cleared
        trust = self._stream.point().trust
        mapping, removed_hashes = (None, None) if change is None or change.hash_mapping is None else pack_mapping(change.hash_mapping)
        sequence = None if change is None else change.sequence
        return encode_entry(
            Entry(self.name, kind, generation, *version, *follows, trust, block_size, cleared, tiers, mapping, removed_hashes, sequence)
        )
