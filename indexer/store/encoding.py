"""What one stream holds, as words of scripts: blocks to set and delete, the head of its state, entries of the log."""

import time
from collections.abc import Mapping
from typing import cast

from indexer.config.settings import Settings
from indexer.core.block_table import BlockRecord, HashRecord
from indexer.core.blocks import Block
from indexer.core.change import Change
from indexer.core.events import Tier
from indexer.core.foreign_copy import ForeignCopy
from indexer.core.names import StreamKey, Trust
from indexer.core.orphans import Parked
from indexer.core.places import LEAD_GPU, slot_and_part
from indexer.core.snapshot import Snapshot
from indexer.core.store import StreamPosition
from indexer.store.keyspace import PARTS, stream_id
from indexer.store.records import (
    Entry,
    ForeignRecord,
    Head,
    Kind,
    ParkedRecord,
    TracedEntry,
    encode_entry,
    encode_field,
    encode_foreign,
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


PlaceRecords = Mapping[int, HashRecord | None]
"""Engine hash → what a place holds for it, None where it holds nothing."""


def words_of(place: int, records: PlaceRecords) -> tuple[list[bytes], list[bytes]]:
    """What to set, field and value in turn, and which fields to delete, in the hash of the place's part."""
    sets: list[bytes] = []
    dels: list[bytes] = []
    slot = slot_and_part(place)[0]
    now_s, now_ms = time.monotonic(), time.time() * 1000
    for engine_hash, record in records.items():
        field = encode_field(engine_hash, slot)
        match record:
            case None:
                dels.append(field)
            case Block() if not record.copies:
                dels.append(field)
            case Block():
                sets += (field, encode_record(BlockRecord(record.copies, record.parent, (record.key,))))
            case BlockRecord():
                sets += (field, encode_record(record))
            case Parked():
                since_ms = int(now_ms - (now_s - record.since_s) * 1000)
                sets += (field, encode_parked(ParkedRecord(record.parent, record.tokens, record.extra, since_ms, record.copies)))
            case ForeignCopy():
                since_ms = int(now_ms - (now_s - record.since_s) * 1000)
                sets += (field, encode_foreign(ForeignRecord(record.parent, record.root, record.tokens, record.place, since_ms, record.keys)))
    return sets, dels


def words(records: Mapping[int, PlaceRecords]) -> tuple[list[Word], int]:
    """What to set and delete in each part, as prelude.lua reads it, and how many more fields there are afterwards, at most. `records`: by place."""
    plain, salted, gone = _lead_words(cast(Mapping[int, Block | BlockRecord | None], records.get(LEAD_GPU, {})))
    growth = len(plain) + len(salted) // 2 - len(gone)
    # Per part: plain blocks, fields and values of others, fields to delete of the lead group and of others.
    found: list[tuple[list[bytes], list[bytes], list[bytes], list[bytes]]] = [([], [], [], []) for _ in PARTS]
    found[Tier.GPU][0].extend(plain)
    found[Tier.GPU][1].extend(salted)
    found[Tier.GPU][2].extend(gone)
    for place, held in records.items():
        if place == LEAD_GPU or not held:
            continue
        slot, part = slot_and_part(place)
        sets, dels = words_of(place, held)
        growth += len(sets) // 2 - len(dels)
        found[part][1].extend(sets)
        found[part][3 if slot else 2].extend(dels)
    all_words: list[Word] = []
    for blocks, sets, gone, gone_with_slot in found:
        all_words += (b"".join(blocks), len(sets), *sets, b"".join(gone), b"".join(gone_with_slot))
    return all_words, growth


def _lead_words(records: Mapping[int, Block | BlockRecord | None]) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """The lead group's on the gpu, which is nearly all that there is: field and value in one, field and value of salted ones, fields to delete."""
    plain: list[bytes] = []
    salted: list[bytes] = []
    gone: list[bytes] = []
    for engine_hash, block in records.items():
        if block is None or not block.copies:
            gone.append(encode_hash(engine_hash))
        elif isinstance(block, Block):  # first: a type that does not match costs several look-ups
            plain.append(encode_plain(engine_hash, block.copies, block.parent, block.key))
        else:
            salted += (encode_hash(engine_hash), encode_record(block))
    return plain, salted, gone


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
        tiers = () if change is None else pack_tiers(change.touched)
        tiers_in = {} if change is None else {slot: pack_tiers(touched) for slot, touched in change.touched_in.items()}
        cleared = change is not None and change.cleared
        mapping, removed_hashes = (None, None) if change is None or change.hash_mapping is None else pack_mapping(change.hash_mapping)
        sequence, spans = (None, b"") if change is None else (change.sequence, change.spans)
        at = (self.name, kind, generation, *version, *follows, trust, self.snapshot.shape)
        content = (cleared, tiers, tiers_in, mapping, removed_hashes, sequence)
        return encode_entry(TracedEntry(*at, *content, spans) if spans else Entry(*at, *content))
