"""What one stream holds, as words of scripts: blocks to set and delete, the head of its state, entries of the log."""

import time
from collections.abc import Mapping, Sequence
from typing import cast

from indexer.config.settings import Settings
from indexer.core.block_table import Block, BlockRecord, HashRecord
from indexer.core.change import Change
from indexer.core.events import Tier
from indexer.core.names import StreamKey, Trust
from indexer.core.orphans import Parked
from indexer.core.snapshot import Snapshot
from indexer.core.store import StreamPosition
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


PartRecords = Mapping[int, HashRecord | None]
"""Engine hash → what a part holds for it, None where it holds nothing."""


def words_of(part: int, records: PartRecords) -> tuple[list[bytes], list[bytes]]:
    """What to set, field and value in turn, and which fields to delete."""
    sets: list[bytes] = []
    dels: list[bytes] = []
    now_s, now_ms = time.monotonic(), time.time() * 1000
    for engine_hash, record in records.items():
        match record:
            case None:
                dels.append(encode_hash(engine_hash))
            case Block() if not record.copies:
                dels.append(encode_hash(engine_hash))
            case Block():
                sets += (encode_hash(engine_hash), encode_record(BlockRecord(record.copies, record.parent, (record.key,))))
            case BlockRecord():
                sets += (encode_hash(engine_hash), encode_record(record))
            case Parked():
                copies = {int(tier): count for tier, count in record.copies.items()}
                since_ms = int(now_ms - (now_s - record.since_s) * 1000)
                sets += (encode_hash(engine_hash), encode_parked(ParkedRecord(record.parent, record.tokens, record.extra, since_ms, copies)))
    return sets, dels


def words(records: Sequence[PartRecords]) -> tuple[list[Word], int]:
    """What to set and delete in each part, as prelude.lua reads it, and how many more fields there are afterwards, at most."""
    plain, gone = _gpu_words(cast(Mapping[int, Block | None], records[Tier.GPU]))
    found: list[Word] = [b"".join(plain), 0, b"".join(gone)]
    growth = len(plain) - len(gone)
    for part in range(1, len(PARTS)):
        if not records[part]:
            found += (b"", 0, b"")
            continue
        sets, dels = words_of(part, records[part])
        growth += len(sets) // 2 - len(dels)
        found += (b"", len(sets), *sets, b"".join(dels))
    return found, growth


def _gpu_words(records: Mapping[int, Block | None]) -> tuple[list[bytes], list[bytes]]:
    """The gpu's part, which is nearly all that there is: field and value in one."""
    plain: list[bytes] = []
    gone: list[bytes] = []
    for engine_hash, block in records.items():
        if block is None or not block.copies:
            gone.append(encode_hash(engine_hash))
        else:
            plain.append(encode_plain(engine_hash, block.copies, block.parent, block.key))
    return plain, gone


class StreamEncoder:
    """Encodes what Redis keeps of a stream besides its blocks. `snapshot`: what the stream holds now."""

    def __init__(self, stream: StreamKey, snapshot: Snapshot, settings: Settings) -> None:
        self.name = stream_id(stream)
        self.snapshot = snapshot
        self._settings = settings

    def head(self, position: StreamPosition) -> bytes:
        """How far the stream's content goes, and how it was made."""
        traits, counting, seed = self.snapshot.traits(), self.snapshot.counting, self._settings.hash_seed
        complete, trust, is_simulator = position.complete, position.trust, position.is_simulator
        return encode_head(Head(position.sequence, position.fingerprint, complete, trust, counting, seed, traits, is_simulator))

    def entry(self, kind: Kind, generation: int, version: Version, follows: Version, trust: Trust, change: Change | None = None) -> bytes:
        """An entry of the log. `version`: the state's after it; `follows`: the one that it follows."""
        block_size = self.snapshot.block_size
        tiers = () if change is None else pack_tiers(change.touched)
        cleared = change is not None and change.cleared
        mapping, removed_hashes = (None, None) if change is None or change.hash_mapping is None else pack_mapping(change.hash_mapping)
        sequence = None if change is None else change.sequence
        return encode_entry(
            Entry(self.name, kind, generation, *version, *follows, trust, block_size, cleared, tiers, mapping, removed_hashes, sequence)
        )
