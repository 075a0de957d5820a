"""With the compiled core and without it, the same bytes become the same events and the same requests, or are refused for the same reason."""

import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.errors import Refused
from indexer.http.negotiation import JSON
from indexer.http.problems import Problem
from indexer.limits import WireLimits
from indexer.wire import decoder as wire_decoder
from indexer.wire.decoder import WireDecoder
from scorer_api.api import decode
from scorer_api.api.prompt import prompt_of
from tests.indexer.wire.test_fuzz import BASES, KINDS, good_stored, storm

pytest.importorskip("indexer.compiled._core")
pack = msgspec.msgpack.encode


def decoded(payload: bytes, limits: WireLimits, *, core: Any) -> Any:
    """What a decoder makes of a payload: its batch, or why it refuses it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire_decoder, "core", core)
        decoder = WireDecoder(limits)
        try:
            return decoder.decode(payload), decoder.dialect
        except Refused as refused:
            return refused.reason


LIMITS = (
    WireLimits(),
    msgspec.structs.replace(WireLimits(), tokens_per_event_max=5, hashes_per_event_max=2, events_per_batch_max=3),
    msgspec.structs.replace(WireLimits(), tokens_per_batch_max=9, hashes_per_batch_max=4, block_size_max=3),
)


def check_payload(payload: bytes) -> None:
    for limits in LIMITS:
        assert decoded(payload, limits, core=wire_decoder.core) == decoded(payload, limits, core=None), payload.hex()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_mutated_payloads_become_the_same_batches(kind: Any) -> None:
    for payload in storm(kind, 1_200):
        check_payload(payload)


def test_payloads_of_every_release_become_the_same_batches() -> None:
    for payload in BASES:
        check_payload(payload)


VALUES = st.one_of(st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**32), st.floats(), st.none(), st.booleans(), st.text(max_size=3))
TOKENS = st.lists(st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 9), VALUES), max_size=8)


@given(TOKENS, st.integers(0, 5), st.one_of(st.integers(-1, 5), VALUES), st.booleans())
def test_events_of_any_tokens_become_the_same_batches(tokens: list[Any], hashes: int, block_size: Any, as_array: bool) -> None:
    event: Any = {**good_stored(list(range(hashes)), tokens), "block_size": block_size}
    if as_array:
        event = ["BlockStored", list(range(hashes)), None, tokens, block_size, None]
    removed: Any = ["BlockRemoved", [1]] if as_array else {"type": "BlockRemoved", "block_hashes": [1]}
    check_payload(pack([1.5, [event, removed], 0]))
    check_payload(pack([1.5, [removed, event, event]]))


@pytest.mark.parametrize("tokens", [-8, [-8], [1, 2, 3]])
def test_an_event_that_is_refused_says_nothing_of_its_engine(tokens: Any) -> None:
    """The parent 0 is the simulator's. How far the event is read before it is refused is another thing with the core."""
    check_payload(pack([1.5, [["BlockStored", [1], 0, tokens, 2, None]]]))


# Requests


def asked(body: bytes, *, core: Any, is_route: bool = False) -> Any:
    """What a body becomes: the prompt and all else that the request says, or the problem."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "core", core)
        try:
            request = (decode.decode_route if is_route else decode.decode_score)(body, JSON)
            prompt = prompt_of(request)
        except Problem as problem:
            return problem.status, problem.detail
        return prompt, msgspec.structs.replace(request, token_ids=None)


def check_body(body: bytes) -> None:
    for is_route in (False, True):
        assert asked(body, core=decode.core, is_route=is_route) == asked(body, core=None, is_route=is_route), body


FIELDS = st.fixed_dictionaries(
    {"model": st.one_of(st.text(max_size=3), VALUES)},
    optional={
        "token_ids": st.one_of(TOKENS, VALUES),
        "prompt": st.one_of(TOKENS, st.text(max_size=4), VALUES),
        "limit": VALUES,
        "pods": st.lists(st.text(max_size=3), max_size=2),
        "temperature": VALUES,
        "token_idz": TOKENS,
        "messages": st.lists(st.fixed_dictionaries({"token_ids": TOKENS}), max_size=2),
    },
)


@given(FIELDS, st.sampled_from([None, 2]), st.booleans())
def test_bodies_become_the_same_requests(body: dict[str, Any], indent: int | None, ascii_only: bool) -> None:
    check_body(json.dumps(body, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))


def test_mutated_bodies_become_the_same_requests() -> None:
    rng = random.Random("bodies")
    bases = [
        b'{"model": "m", "token_ids": [1, 22, 4294967295], "limit": 1}',
        b'{"model":"m","prompt":[1,2,3],"temperature":0.5,"stop":["]"]}',
        b'{"model":"m","token_ids":[],"cache_salt":"\\u0041"}',
        b'{"model":"m","token_ids":[7],"token_ids":[8]}',
    ]
    for _ in range(6_000):
        body = bytearray(rng.choice(bases))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(body))
            body[at : at + rng.randint(0, 2)] = bytes([rng.choice(b'0123456789,[]{}":\\ eu.-\xff\x00')] * rng.randint(0, 2))
            body = body or bytearray(b"{")
        check_body(bytes(body))


@pytest.mark.parametrize("filler", [250_000, 262_100, 262_200, 270_000, 600_000])
@pytest.mark.parametrize("tokens", [10, 40_000, 150_000])
def test_large_bodies_become_the_same_requests(filler: int, tokens: int) -> None:
    """Around the size from which a body is scanned for large fields, and the one from which it is not taken at once."""
    for field in ("x", "lora_name", "tools"):
        more: Any = "y" * filler if field != "tools" else [["y"]] * (filler // 6)
        check_body(json.dumps({"model": "m", "token_ids": list(range(tokens)), field: more}).encode())
    spaced = json.dumps({"model": "m", "token_ids": list(range(tokens))}).encode()
    check_body(spaced[:1] + b" " * filler + spaced[1:])
