"""What a dump says of a stream, and in which steps it is made."""

from typing import Any

import msgspec
import pytest

from indexer.core.events import Removed, Tier
from indexer.core.stream_state import StreamState
from scorer_api.compat import dumps
from scorer_api.compat.dumps import PIECE_BLOCKS, stored_events
from tests.events import stored


def hash_and_parent(event: bytes) -> tuple[int, int | None]:
    told: Any = msgspec.json.decode(event)["event"]["data"]["stored"]
    return told["blocks"][0]["block_hash"], told["parent_hash"]


def test_a_long_chain_is_told_from_its_beginning_in_pieces() -> None:
    """Its first block was announced again last, so it is the last one that is looked at."""
    state = StreamState("m", "")
    blocks = 3 * PIECE_BLOCKS
    state.apply([stored(range(1, blocks + 1))], 0.0)
    state.apply([Removed([1], Tier.GPU, None), stored([1])], 0.0)
    pieces = list(stored_events(7, 0, state.table, lambda key: key))
    assert max(map(len, pieces)) <= PIECE_BLOCKS
    assert [hash_and_parent(event) for piece in pieces for event in piece] == [(number, number - 1 or None) for number in range(1, blocks + 1)]


def test_a_chain_that_is_looked_at_from_its_end_is_followed_in_steps() -> None:
    state = StreamState("m", "")
    blocks = 3 * PIECE_BLOCKS
    state.apply([stored(range(1, blocks + 1))], 0.0)
    state.apply([Removed(list(range(1, blocks)), Tier.GPU, None), stored(range(1, blocks))], 0.0)
    pieces = list(stored_events(7, 0, state.table, lambda key: key))
    assert [len(piece) for piece in pieces[:4]] == [0, 0, 0, 0]
    assert [hash_and_parent(event)[0] for piece in pieces for event in piece] == list(range(1, blocks + 1))


def test_many_hashes_are_gone_through_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """All belong to the chain of the first one that is looked at, and are passed over after it."""
    monkeypatch.setattr(dumps, "LOOKED_AT", 100)
    state = StreamState("m", "")
    state.apply([stored(range(1, 1_001))], 0.0)
    state.apply([Removed(list(range(1, 1_000)), Tier.GPU, None), stored(range(1, 1_000))], 0.0)
    assert [len(piece) for piece in stored_events(7, 0, state.table, lambda key: key)] == [*[0] * 20, 1_000]


def test_what_only_a_lower_tier_holds_is_told_of_that_tier_alone() -> None:
    state = StreamState("m", "")
    state.apply([stored([1, 2]), stored([1], tier=Tier.CPU), Removed([1], Tier.GPU, None)], 0.0)
    events = [msgspec.json.decode(event) for piece in stored_events(7, 0, state.table, lambda key: key) for event in piece]
    told = [(event["storage_tier"], event["event"]["data"]["stored"]["blocks"][0]["block_hash"]) for event in events]
    assert told == [("device", 2), ("host_pinned", 1)]
