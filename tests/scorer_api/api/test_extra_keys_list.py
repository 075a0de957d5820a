"""A long list of extra keys that is decoded in pieces is taken and refused as msgspec takes and refuses the whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from indexer.http.negotiation import JSON, MSGPACK
from indexer.http.problems import Problem
from scorer_api.api import decode, extra_keys_list
from scorer_api.api.decode import SPARE_BYTES_MAX, Outline, decode_score
from scorer_api.api.prompt import prompt_of
from scorer_api.api.route_schemas import RouteRequest

EXAMPLES = int(os.environ.get("TEST_EXAMPLES", "300"))


@contextmanager
def small_pieces() -> Iterator[None]:
    """Lists of a few entries count as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "UNSCANNED_BYTES_MAX", 0)
        patch.setattr(extra_keys_list, "LIST_BYTES_MIN", 8)
        patch.setattr(extra_keys_list, "PIECE_ENTRIES", 3)
        yield


def outcome(body: bytes, media_type: str) -> object:
    """The prompt and the other fields, or status and detail of the problem."""
    try:
        request = decode_score(body, media_type)
        return prompt_of(request), msgspec.structs.replace(request, block_extra_keys=None)
    except Problem as problem:
        return problem.status, problem.detail


def is_the_same(body: bytes, media_type: str) -> None:
    with small_pieces():
        in_pieces = outcome(body, media_type)
    assert in_pieces == outcome(body, media_type)


extra_key = st.one_of(st.text(max_size=3), st.integers(-3, 2**64), st.none(), st.lists(st.integers(0, 9), max_size=2))
good = st.tuples(st.integers(0, 40), st.lists(st.one_of(st.text(max_size=3), st.integers(0, 9)), max_size=2))
odd = st.one_of(
    st.tuples(st.integers(-1, 2**33), st.lists(extra_key, max_size=2)),
    st.none(),
    st.just([1]),
    st.just([1, None]),
    st.just([1, [], 2]),
    st.just(["1", []]),
    st.just({}),
)
entries = st.tuples(st.lists(good, max_size=9), st.lists(odd, max_size=1), st.lists(good, max_size=9)).map(
    lambda parts: [*parts[0], *parts[1], *parts[2]]
)
fields = st.fixed_dictionaries(
    {"model": st.just("m"), "token_ids": st.just([1, 2, 3]), "block_extra_keys": st.one_of(entries, st.none(), st.just("[[0,[]],[1,[]]]"))},
    optional={"cache_salt": st.sampled_from(["salt", ""]), "lora_name": st.text(max_size=2), "limit": st.integers(1, 2)},
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(fields, st.booleans())
@example({"model": "[[1,[2]],[3,[4]]]", "token_ids": [1], "block_extra_keys": [[1, [2]], [3, [4]]]}, False)
@example({"model": "m", "token_ids": [1], "block_extra_keys": [[1, [2]], [3, [4]], [5, [6]], [7, "8"]]}, False)
@example({"model": "m", "token_ids": [1], "block_extra_keys": [[1, [2]], [3, [4]], [5, [6]], [1, []]]}, True)
def test_a_body_in_json(request: dict[str, Any], first_twice: bool) -> None:
    body = msgspec.json.encode(request)
    twice = b'{"block_extra_keys":[[9,["x"]],[8,[]]],' + body[1:]
    is_the_same(twice if first_twice else body, JSON)


@settings(max_examples=EXAMPLES, deadline=None)
@given(fields)
def test_a_body_in_msgpack(request: dict[str, Any]) -> None:
    is_the_same(msgspec.msgpack.encode(request), MSGPACK)


@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
def test_no_step_decodes_or_folds_many_entries(media_type: str) -> None:
    codec = msgspec.json if media_type == JSON else msgspec.msgpack
    given_keys = [[number, ["x", number]] for number in range(80_000)]
    content = codec.encode(given_keys)
    steps = list(decode._steps(codec.encode({"model": "m", "token_ids": [1], "block_extra_keys": given_keys}), media_type, decode._SCORE))
    assert len(steps) > len(given_keys) // extra_keys_list.PIECE_ENTRIES
    assert len(content) > decode.UNSCANNED_BYTES_MAX


def test_much_that_is_in_no_field_is_refused() -> None:
    tokens = b"[" + b",".join([b"1"] * SPARE_BYTES_MAX) + b"]"
    for body in (
        b'{"model":"m","token_ids":' + tokens + b',"token_ids":[1]}',
        b'{"model":"m",' + b" " * (SPARE_BYTES_MAX + 1) + b'"token_ids":[1]}',
    ):
        assert outcome(body, JSON)[0] == 422  # type: ignore[index]
        assert "in no field" in str(outcome(body, JSON))
    assert isinstance(outcome(b'{"model":"m",' + b" " * (SPARE_BYTES_MAX - 100) + b'"token_ids":[1]}', JSON)[1], decode.ScoreRequest)  # type: ignore[index]


def test_the_outline_has_all_fields_of_requests() -> None:
    assert set(Outline.__struct_fields__) >= set(RouteRequest.__struct_fields__)
