"""The blocks of a stream as the events that would announce them, in the shape of Dynamo's `/dump`. Pure."""

from collections.abc import Callable, Iterator

import msgspec

from indexer.core.block_table import BlockTable
from indexer.core.events import Tier
from indexer.core.names import StreamKey
from indexer.core.places import slot_and_part

BlockTables = Callable[[StreamKey], BlockTable | None]
"""The blocks of a stream, None where it does not run here."""
STORAGE_TIERS = {Tier.GPU: "device", Tier.CPU: "host_pinned", Tier.DISK: "disk", Tier.OTHER: "external"}
PIECE_BLOCKS = 1_024
# To look at so many hashes takes a millisecond.
LOOKED_AT = 16_384

_encode = msgspec.json.Encoder().encode


def stored_events(instance: int, rank: int, table: BlockTable, local_hash: Callable[[int], int | None]) -> Iterator[list[bytes]]:
    """Encoded events of one block each, a parent before its children, in lists that are made in one go. `local_hash`: of a block key.

    Left out: blocks whose local hash is not known, and those of other KV-cache groups than the lead group.
    """
    number = 0
    for place in table.places():
        slot, part = slot_and_part(place)
        tier = next((name for each, name in STORAGE_TIERS.items() if each == part), None)
        if slot or tier is None:
            continue
        for hashes in _parents_first(table, place):
            events = []
            for engine_hash in hashes:
                record = table.record(place, engine_hash)
                if record is None or record.parent == engine_hash:
                    continue  # gone since, or inferred from tokens below the gpu
                if (local := local_hash(record.keys[0])) is not None:
                    events.append(_event(instance, rank, tier, number, engine_hash, record.parent, local))
                    number += 1
            yield events


def _parents_first(table: BlockTable, place: int) -> Iterator[list[int]]:
    """The engine hashes of a place, in pieces; empty ones come while a long chain is followed to its beginning."""
    hashes = table.hashes(place)
    left: set[int] = set()
    for start in range(0, len(hashes), LOOKED_AT):
        left.update(hashes[start : start + LOOKED_AT])
        yield []
    piece: list[int] = []
    for number, first in enumerate(hashes, 1):
        if not number % LOOKED_AT:
            yield []
        if first not in left:
            continue
        chain = [first]
        left.discard(first)
        while (block := table.known(chain[-1])) is not None and block.parent in left:
            chain.append(block.parent)
            left.discard(block.parent)
            if len(chain) % PIECE_BLOCKS == 0:
                yield []
        while chain:
            piece.append(chain.pop())
            if len(piece) >= PIECE_BLOCKS:
                yield piece
                piece = []
    yield piece


def _event(instance: int, rank: int, tier: str, number: int, engine_hash: int, parent: int | None, local: int) -> bytes:
    block = {"block_hash": engine_hash, "tokens_hash": local, "mm_extra_info": None}
    stored = {"parent_hash": parent, "start_position": None, "blocks": [block]}
    event = {"event_id": number, "data": {"stored": stored}, "dp_rank": rank}
    return _encode({"worker_id": instance, "storage_tier": tier, "residency_domain": "worker", "event": event})
