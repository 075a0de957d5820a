"""Bodies that are decoded in pieces are taken and refused as msgspec takes and refuses the whole."""

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from indexer.http.negotiation import JSON, MSGPACK
from indexer.http.problems import Problem
from scorer_api.api import decode
from scorer_api.api.decode import decode_score, decode_score_at_once, decode_score_in_turns
from scorer_api.api.prompt import prompt_of
from scorer_api.api.schemas import ScoreRequest
from scorer_api.tokens import token_lists

PIECE_ITEMS = 3
TWO_NAMES = "tokens under two names"
# Tens of thousands have been played.
EXAMPLES = int(os.environ.get("TEST_EXAMPLES", "300"))


@pytest.fixture(autouse=True)
def _small_pieces() -> Iterator[None]:
    """Lists of a few tokens count as long here."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (decode, token_lists):
            patch.setattr(module, "LIST_BYTES_MIN", 12)
        patch.setattr(token_lists, "PIECE_BYTES", 4)
        patch.setattr(token_lists, "PIECE_ITEMS", PIECE_ITEMS)
        patch.setattr(token_lists, "_ITEMS", re.compile(token_lists._INTEGER + b"{%d}" % PIECE_ITEMS, re.DOTALL))
        yield


def outcome(decode: Callable[[], ScoreRequest | None]) -> object:
    """The prompt and the other fields, or status and detail of the problem; None where another is to decode."""
    try:
        request = decode()
        if request is None:
            return None
        if request.token_ids is not None and request.prompt is not None:
            return TWO_NAMES
        return prompt_of(request), msgspec.structs.replace(request, token_ids=None)
    except Problem as problem:
        return problem.status, problem.detail


def is_the_same(body: bytes, media_type: str) -> None:
    whole = outcome(lambda: decode_score(body, media_type))
    in_turns = outcome(lambda: asyncio.run(decode_score_in_turns(body, media_type, asyncio.Lock())))
    at_once = outcome(lambda: decode_score_at_once(body, media_type))
    for found in (in_turns, at_once) if at_once is not None else (in_turns,):
        # Tokens under two names are refused when the request is resolved, unless a bad one was seen before: which one of two bad ones depends on the
        # way.
        assert found == whole or {refused_name(found), refused_name(whole)} in ({"both", "token_ids"}, {"both", "prompt"}, {"token_ids", "prompt"})


def refused_name(found: object) -> str:
    """Under which name tokens are refused; "" where they are not."""
    if found == TWO_NAMES:
        return "both"
    return str(found[1]).partition("[")[0] if isinstance(found, tuple) and found[0] == 422 else ""


space = st.sampled_from([b"", b"", b"", b" ", b"\n\t "])
good = st.integers(0, 2**32 - 1).map(lambda token: str(token).encode())
odd = st.sampled_from(
    [b"-1", b"4294967296", b"18446744073709551616", b'"1"', b"null", b"1.5", b"1e3", b"[1]", b"[]", b"{}", b"", b"01", b"-", b'"],["', b"\xff"]
)
token = st.tuples(space, st.one_of(good, good, good, good, odd), space).map(b"".join)
plain_list = st.lists(good, max_size=30).map(lambda items: b"[" + b",".join(items) + b"]")
any_list = st.lists(token, max_size=30).map(lambda items: b"[" + b",".join(items) + b"]")
own_keys = [b'"token_ids"', b'"token_ids"', b'"token_ids"', b'"token\\u005fids"', b'"prompt"', b'"prompt"', b'"prom\\u0070t"']
key = st.sampled_from([*own_keys, b'"messages"', b'"lora_name"', b'"pods"', b'"other"'])
text = st.sampled_from([b'"m"', b'"token_ids"', b'"\\"token_ids\\":[1,2,3,4,5,6,7,8,9]"', b'"\xc3\xa4"', b'"\xff"', b"null", b"1", b"true"])
nested = plain_list.map(lambda tokens: b'[{"token_ids":' + tokens + b"}]")
field = st.tuples(key, space, st.just(b":"), space, st.one_of(plain_list, any_list, text, nested)).map(b"".join)
model = st.sampled_from([b'"model":"m"', b'"model":"m"', b'"model":1'])
bodies = st.lists(st.one_of(field, model), max_size=4).map(lambda fields: b"{" + b",".join(fields) + b"}")
mostly_right = st.tuples(plain_list, any_list, st.lists(field, max_size=1)).map(
    lambda parts: b'{"model":"m",' + b"".join(each + b"," for each in parts[2]) + b'"token_ids":' + parts[1] + b"}"
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A body as it is, cut off, or with a byte changed, taken out or added."""
    body = draw(st.one_of(bodies, mostly_right))
    if draw(st.booleans()):
        return body
    at = draw(st.integers(0, len(body)))
    return draw(st.sampled_from([body[:at], body[:at] + body[at + 1 :], body[:at] + draw(st.binary(min_size=1, max_size=1)) + body[at:]]))


@settings(max_examples=EXAMPLES, deadline=None)
@given(damaged())
@example(b'{"model":"m","token_ids":[11111111,2222222,3333333,  ]}')
@example(b'{"model":"m","token_ids":[11111111,2222222,,3333333]}')
@example(b'{"model":"m","token\\u005fids":["1"],"token_ids":[0,0,0,0,0,0,0]}')
@example(b'{"model":"m","token_ids":[0,0,0,0,0,0,0],"token\\u005fids":["1"]}')
@example(b'{"model":"m","prompt":["1"],"prompt":[0,0,0,0,0,0,0]}')
@example(b'{"model":"m","prompt":[0,0,0,0,0,0,0],"prompt":[1,1,1,1,1,1,-1]}')
@example(b'{"model":"m","token_ids":[-1,11111111,2222222,3333333],"x":1}')
@example(b'{"token_ids":[],"token_ids":[0,0,0,0,0,0],"model":"m","prompt":[]}')
@example(b'{"token_ids":[10001000000],"prompt":[],"model":"m"}')
@example(b'{"model":"m","prompt":[100,100,1000],"token_ids":["1"')
@example(b'{"model":"m","prompt":[-1],"token_ids":[0,0,0,0,0,0]}')
@example(b'{"model":"m","prompt":[-1],"token_ids":[0,0,0,0,-1]}')
@example(b'{"pods":[0,0,0,0,0,0,0]}')
@example(b'{"pods":[0,0,0,0,0,0,0],"token_ids":[0,0,0,0,0,0,0]}')
@example(b'{"pods":[0,0,0,0,0,0,0],"token\\u005fids":[0,0,0,0,0,0,0]}')
@example(b'{"token\\u005fids":[0,0,0,0,0,0,0],"pods":[0,0,0,0,0,0,0]}')
@example(b'{"pods":[0,0,0,0,0,0,0],"prompt":[1],"prompt":[0,0,0,0,0,0,0]}')
def test_a_body_in_json(body: bytes) -> None:
    is_the_same(body, JSON)


tokens = st.lists(st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 127)), max_size=20)
odd_item = st.one_of(
    st.integers(-(2**63), 2**64 - 1), st.none(), st.text(max_size=2), st.binary(max_size=5), st.floats(), st.lists(st.integers(0, 9), max_size=2)
)
some_odd = st.tuples(tokens, st.lists(odd_item, max_size=1), tokens).map(lambda parts: [*parts[0], *parts[1], *parts[2]])


@st.composite
def in_msgpack(draw: st.DrawFn) -> bytes:
    fields: dict[str, Any] = {"model": "m", "token_ids": draw(st.one_of(tokens, some_odd))}
    if draw(st.booleans()):
        fields = {
            draw(st.sampled_from(["lora_name", "pods", "messages", "other"])): draw(
                st.one_of(st.just("x"), some_odd, some_odd.map(lambda t: [{"token_ids": t}]))
            )
        } | fields
    body = msgspec.msgpack.encode(fields)
    if draw(st.booleans()):
        return body
    at = draw(st.integers(0, len(body)))
    return draw(st.sampled_from([body[:at], body[:at] + body[at + 1 :], body[:at] + draw(st.binary(min_size=1, max_size=1)) + body[at + 1 :]]))


NUMBERS = msgspec.msgpack.encode([0] * 31)
# The same key with a longer head.
LONG_KEY = b"\xd9\x09token_ids"
# In msgpack this is the key, the head of a list of 32,773, and as many small integers.
TEXT_LIKE_TOKENS = "\u00e9token_ids\u0700\x05" + 32_773 * "\x01"


@settings(max_examples=EXAMPLES, deadline=None)
@given(in_msgpack())
@example(b"\x81\xa4pods" + NUMBERS)
@example(b"\x82\xa4pods" + NUMBERS + b"\xa9token_ids" + NUMBERS)
@example(b"\x82\xa4pods" + NUMBERS + LONG_KEY + NUMBERS)
@example(b"\x82" + LONG_KEY + NUMBERS + b"\xa4pods" + NUMBERS)
@example(b"\x83\xa5model\xa1m\xa5other\x81\xa9token_ids" + NUMBERS + LONG_KEY + b"\x91\x07")
@example(msgspec.msgpack.encode({"model": "m", "prompt": TEXT_LIKE_TOKENS}))
@example(msgspec.msgpack.encode({"pods": [0], "prompt": TEXT_LIKE_TOKENS}))
def test_a_body_in_msgpack(body: bytes) -> None:
    is_the_same(body, MSGPACK)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","token_ids":[1,2,3],"token_ids":%b}',
        b'{"model":"m","prompt":[1,2,3],"prompt":%b}',
        b'{"model":"m","prompt":"1","prom\\u0070t":%b}',
    ],
)
async def test_others_have_their_turn_while_tokens_that_are_given_twice_are_decoded(body: bytes) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count(), name="count")
    request = await decode_score_in_turns(body % msgspec.json.encode([1_000_000] * 100), JSON, asyncio.Lock())
    counting.cancel()
    assert request.token_ids == (1_000_000).to_bytes(4, "little") * 100
    assert turns >= 100, "one for each piece"
