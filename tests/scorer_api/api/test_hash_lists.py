"""Long lists of engine hashes are decoded in pieces, and taken and refused as the decoder takes and refuses the whole."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from indexer.http.negotiation import JSON
from indexer.http.problems import Problem
from scorer_api.api import decode, hash_lists
from scorer_api.api.decode import decode_score, decode_score_in_turns
from scorer_api.api.hash_lists import take_hashes
from scorer_api.api.schemas import BLOCK_HASHES_MAX
from scorer_api.index.engine_hashes import normalised
from scorer_api.tokens import token_lists


def outcome(body: bytes, *, in_turns: bool) -> object:
    try:
        request = asyncio.run(decode_score_in_turns(body, JSON, asyncio.Lock())) if in_turns else decode_score(body, JSON)
        return replace(request, block_hashes=None), request.block_hashes and normalised(request.block_hashes)
    except (Problem, ValueError) as error:
        return getattr(error, "status", 422), str(error)


item: st.SearchStrategy[Any] = st.one_of(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1).map("{:016x}".format),
    st.sampled_from(["0123456789abcdef" * 4, "xyz", "]", "0,1", -1, 2**64, None, 1.5, [1]]),
)
good = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1).map("{:016x}".format))


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    hashes = draw(st.one_of(st.lists(good, max_size=20), st.lists(item, max_size=8)))
    body = json.dumps({"model": "m", "block_hashes": hashes}, indent=draw(st.sampled_from([None, 1]))).encode()
    at = draw(st.integers(0, len(body)))
    return draw(st.sampled_from([body, body, body, body[:at], body[:at] + b"," + body[at:], body[:at] + body[at + 1 :]]))


@pytest.fixture
def _small_pieces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (decode, token_lists):
            patch.setattr(module, "LIST_BYTES_MIN", 12)
        patch.setattr(hash_lists, "PIECE_BYTES", 20)
        yield


@pytest.mark.usefixtures("_small_pieces")
@settings(max_examples=300, deadline=None)
@given(bodies())
def test_they_are_taken_as_a_whole_is(body: bytes) -> None:
    assert outcome(body, in_turns=True) == outcome(body, in_turns=False)


async def test_a_usual_list_is_taken_in_pieces() -> None:
    hashes = [f"{number:016x}" for number in range(20_000)]
    taken = await take_hashes(json.dumps({"model": "m", "block_hashes": hashes}).encode())
    assert taken is not None
    assert (taken.hashes, json.loads(taken.body)) == (list(range(20_000)), {"model": "m", "block_hashes": []})


def test_too_many_are_refused_with_the_same_words() -> None:
    body = json.dumps({"model": "m", "block_hashes": [7] * (BLOCK_HASHES_MAX + 1)}).encode()
    assert outcome(body, in_turns=True) == outcome(body, in_turns=False)
    assert f"{BLOCK_HASHES_MAX}" in str(outcome(body, in_turns=True))
