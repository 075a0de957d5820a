"""Long lists of tokens are taken out of a body in pieces, and everything else is left to the decoder."""

import asyncio
import json
import time
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.core.block_keys import pack_tokens
from indexer.http.negotiation import JSON, MSGPACK
from scorer_api.tokens.token_lists import LIST_BYTES_MIN, PIECE_BYTES, PIECE_ITEMS, Taken, take_tokens

LONG = [(number * 2_654_435_761) % 2**32 for number in range(100_000)]


def encoded(request: dict[str, Any], media_type: str) -> bytes:
    return msgspec.json.encode(request) if media_type == JSON else msgspec.msgpack.encode(request)


def decoded(body: bytes, media_type: str) -> Any:
    return msgspec.json.decode(body) if media_type == JSON else msgspec.msgpack.decode(body)


async def taken(body: bytes, media_type: str = JSON) -> Taken | None:
    return await take_tokens(body, "token_ids", media_type)


@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
@pytest.mark.parametrize("before", [{}, {"model": "m"}])
@pytest.mark.parametrize("after", [{}, {"lora_name": "ad"}])
async def test_tokens_are_taken_and_the_rest_stays(media_type: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    found = await taken(encoded({**before, "token_ids": LONG, **after}, media_type), media_type)
    assert found is not None
    rest = decoded(found.body, media_type)
    assert found.tokens + pack_tokens(rest["token_ids"]) == pack_tokens(LONG)
    assert len(rest.pop("token_ids")) == found.left < PIECE_ITEMS
    assert rest == {**before, **after}


async def test_spaces_and_line_breaks_do_not_matter() -> None:
    found = await taken(json.dumps({"token_ids": LONG, "model": "m"}, indent=1).encode())
    assert found is not None
    assert (found.tokens, json.loads(found.body)) == (pack_tokens(LONG), {"token_ids": [], "model": "m"})


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=7), st.integers(0, PIECE_ITEMS))
def test_integers_of_all_sizes(pattern: list[int], more: int) -> None:
    tokens = (pattern * LIST_BYTES_MIN)[: LIST_BYTES_MIN + more]
    for media_type in (JSON, MSGPACK):
        body = encoded({"token_ids": tokens}, media_type)
        found = asyncio.run(taken(body, media_type))
        assert found is not None
        assert found.tokens + pack_tokens(decoded(found.body, media_type)["token_ids"]) == pack_tokens(tokens)


NUMBERS = b"1234567," * 50_000


@pytest.mark.parametrize(
    "body",
    [
        b'{"token_ids": [1, 2, 3]}',
        b'{"token_ids": "' + b"A" * LIST_BYTES_MIN + b'"}',
        b'{"token_ids": [' + NUMBERS,
        b'{"token_ids": [' + NUMBERS + b'1], "token_ids": [1]}',
        b'{"other": {"token_ids": [' + NUMBERS + b"1]}}",
        b'{"messages": "' + b"x" * LIST_BYTES_MIN + b'"}',
    ],
)
async def test_whatever_else_it_is_the_decoder_is_left_to_say(body: bytes) -> None:
    assert await taken(body) is None


@pytest.mark.parametrize("end", [b"]}", b" ]}", b",1]}", b'"1"]}', b"1.5]}", b"[1]]}"])
async def test_what_is_wrong_is_near_the_beginning_of_what_is_left(end: bytes) -> None:
    found = await taken(b'{"token_ids": [' + NUMBERS + end)
    assert found is not None
    assert found.left is None
    assert (found.count + found.body.count(b","), found.cut + len(found.body)) == (50_000 + end.count(b","), 15 + len(NUMBERS + end))
    assert len(found.body) < 4 * PIECE_BYTES
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(found.body, type=dict[str, list[int]])


@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
@pytest.mark.parametrize("bad", [-1, 2**32])
async def test_the_first_one_out_of_range_is_named(media_type: str, bad: int) -> None:
    found = await taken(encoded({"token_ids": [*LONG[:50_000], bad, *LONG, bad]}, media_type), media_type)
    assert found is not None
    if found.bad is None:  # msgpack has other bytes for negative integers: they stay in the list
        assert msgspec.msgpack.decode(found.body)["token_ids"][50_000 - found.count] == bad
    else:
        assert found.bad == (50_000, bad)


@pytest.mark.parametrize("request_", [{"token_ids": [*LONG, "x"], "y": 1}, {"token_ids": ["x", *LONG]}, {"token_ids": [*LONG[:50_000], None, *LONG]}])
async def test_what_is_no_integer_in_msgpack_stays_in_the_list(request_: dict[str, Any]) -> None:
    found = await taken(msgspec.msgpack.encode(request_), MSGPACK)
    assert found is not None
    rest = msgspec.msgpack.decode(found.body)["token_ids"]
    assert (found.count + len(rest), found.left) == (len(request_["token_ids"]), len(rest))
    assert rest == request_["token_ids"][found.count :]


async def test_packed_tokens_are_left_where_they_are() -> None:
    assert await taken(msgspec.msgpack.encode({"token_ids": bytes(LIST_BYTES_MIN)}), MSGPACK) is None


@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
async def test_others_have_their_turn_in_between(media_type: str) -> None:
    """By processor time, which other processes do not add to."""
    turns: list[float] = []
    body = encoded({"token_ids": LONG * 10}, media_type)
    taking = asyncio.create_task(taken(body, media_type))
    while not taking.done():
        turns.append(time.thread_time())
        await asyncio.sleep(0)
    assert len(turns) > 80
    assert max(after - before for before, after in pairwise(turns)) < 0.05
