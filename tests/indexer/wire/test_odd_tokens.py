"""Events whose tokens are not all integers: what of them is used."""

import struct
from typing import Any

import pytest

from indexer.core.events import Stored
from tests.indexer.wire.payloads import decode_events, stored_array, stored_map


def tokens_of(event: Stored) -> list[int]:
    return list(struct.unpack(f"<{len(event.tokens) // 4}I", event.tokens))


def read(**fields: Any) -> tuple[list[Stored], dict[str, int]]:
    """What an event is read as, the same in a map and in an array, and what is counted."""
    of_map = decode_events(stored_map(**fields))
    array = stored_array(fields.get("block_hashes", [1]), None, fields["token_ids"])
    of_array = decode_events(array if "extra_keys" not in fields else [*array, None, None, None, fields["extra_keys"]])
    assert [(event.hashes, event.tokens, event.extra_keys) for event in of_map.events if isinstance(event, Stored)] == [
        (event.hashes, event.tokens, event.extra_keys) for event in of_array.events if isinstance(event, Stored)
    ]
    assert of_map.refused == of_array.refused
    return [event for event in of_map.events if isinstance(event, Stored)], dict(of_map.refused)


def test_of_pairs_the_first_tokens_are_the_blocks() -> None:
    (event,), refused = read(block_hashes=[1, 2], token_ids=[[10, 11], [11, 12], [12, 13], [13, 14]])
    assert (event.hashes, tokens_of(event), refused) == ([1, 2], [10, 11, 12, 13], {})


@pytest.mark.parametrize(
    ("odd", "reason"), [("digest", "token_text"), (None, "token_type"), (2.5, "token_type"), (-1, "token_range"), (2**32, "token_range")]
)
def test_the_blocks_before_an_odd_token_are_used_and_it_is_counted(odd: Any, reason: str) -> None:
    for position, blocks in ((5, 2), (4, 2), (3, 1)):
        tokens: list[Any] = [1, 2, 3, 4, 5, 6]
        tokens[position] = odd
        (event,), refused = read(block_hashes=[7, 8, 9], token_ids=tokens, extra_keys=[None, ["x"], ["y"]])
        assert (event.hashes, tokens_of(event), refused) == ([7, 8, 9][:blocks], tokens[: 2 * blocks], {reason: 1})
        assert list(event.extra_keys or ()) == ([1] if blocks == 2 else [])


@pytest.mark.parametrize(("odd", "reason"), [("digest", "token_text"), (None, "token_type"), (-1, "token_range")])
def test_nothing_is_used_where_the_first_block_is_odd(odd: Any, reason: str) -> None:
    assert read(block_hashes=[7, 8], token_ids=[1, odd, 3, 4]) == ([], {reason: 1})


def test_an_odd_token_in_a_sparse_event_costs_the_event() -> None:
    """Which blocks are before it is not told."""
    assert read(block_hashes=[7], token_ids=[1, 2, "digest", 4]) == ([], {"token_text": 1})
