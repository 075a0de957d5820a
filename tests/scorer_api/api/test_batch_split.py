"""A large batch in JSON is split as the decoder of the whole splits it."""

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from indexer.http.negotiation import JSON
from indexer.http.problems import Problem
from scorer_api.api import batch_split, decode
from scorer_api.api.batch_split import split_in_turns
from scorer_api.api.decode import split_batch, split_batch_in_turns

EXAMPLES = int(os.environ.get("TEST_EXAMPLES", "200"))


@pytest.fixture(autouse=True)
def _small_pieces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (decode, batch_split):
            patch.setattr(module, "WHOLE_BYTES_MAX", 0)
        patch.setattr(batch_split, "PIECE_BYTES", 8)
        yield


def outcome(body: bytes, *, in_turns: bool) -> object:
    try:
        return list(asyncio.run(split_batch_in_turns(body, JSON, asyncio.Lock())) if in_turns else split_batch(body, JSON))
    except Problem as problem:
        return problem.status, problem.detail


texts = st.sampled_from(["", "m", "}", "{", "},{", '"},{"', "}]}", "\\", 'a"b'])
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(texts, st.integers(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
items = st.one_of(st.dictionaries(texts, values, max_size=3), values)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A batch, as it is or damaged."""
    body = json.dumps({"requests": draw(st.lists(items, max_size=5))}, indent=draw(st.sampled_from([None, 1]))).encode()
    if draw(st.booleans()):
        return body
    at = draw(st.integers(0, len(body)))
    more = draw(st.sampled_from([b"", b"}", b"{", b",", b"]", b'"', b"\xff", b"{},", b',"requests":[]']))
    return draw(st.sampled_from([body[:at] + more, body[:at] + more + body[at:], body[:at] + more + body[at + 1 :]]))


@settings(max_examples=EXAMPLES, deadline=None)
@given(bodies())
@example(b'{"requests":[' + b"{}," * 300 + b"{}]}")
def test_it_is_split_as_a_whole_is(body: bytes) -> None:
    assert outcome(body, in_turns=True) == outcome(body, in_turns=False)


@pytest.mark.parametrize("indent", [None, 2])
async def test_a_usual_batch_is_split_in_pieces(indent: int | None) -> None:
    requests = [
        {"model": "m", "messages": [{"role": "user", "content": "}, {"}, {"role": "user", "content": "{}"}]},
        {"model": "m", "token_ids": [1]},
        {},
    ]
    found = await split_in_turns(json.dumps({"requests": requests}, indent=indent).encode())
    assert found is not None
    assert list(map(json.loads, found)) == requests
