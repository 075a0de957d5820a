"""Messages that clients send, made by protoc's classes."""

import asyncio
import json
from typing import Any

import pytest
from msgspec import structs

from indexer.core.block_keys import pack_tokens
from indexer.http.negotiation import JSON
from indexer.http.problems import Problem
from scorer_api.api.decode import decode_route, decode_score
from scorer_api.api.schemas import BLOCK_HASHES_MAX
from scorer_api.rpc.requests import done_request_of, read_request, route_request_of, score_request_of
from tests.scorer_stub import messages

MESSAGES = [{"role": "user", "content": "Grüße"}]
IN_JSON = ("messages", "tools", "chat_template_kwargs", "documents", "mm_processor_kwargs", "block_extra_keys")


def score(**fields: Any) -> Any:
    return asyncio.run(score_request_of(messages.ScoreRequest(**fields).SerializeToString(), asyncio.Lock()))


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "m", "prompt": "Grüße"},
        {"model": "m", "prompt": "x" * 500_000},
        {"model": "m", "block_hashes": [0, 2**64 - 1]},
        {"model": "m", "block_hashes": [7], "pods": ["a", "ö"], "lora_name": "l", "cache_salt": "s", "limit": 3, "include_speculative": True},
        {"model": "m", "prompt": "a", "include_speculative": False, "block_extra_keys": [[0, [["img", -1], "x", 2]]]},
        {"model": "m", "messages": MESSAGES, "tools": [{}], "chat_template_kwargs": {"a": 1}, "documents": [{}], "mm_processor_kwargs": {}},
        {"model": "m", "messages": MESSAGES, "add_generation_prompt": False, "continue_final_message": True, "reasoning_effort": "low"},
        {"model": "m", "messages": MESSAGES, "chat_template": "{{ a }}"},
    ],
)
def test_a_message_and_a_body_are_the_same_request(fields: dict[str, Any]) -> None:
    of_body = decode_score(json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode(), JSON)
    given = {name: json.dumps(value, separators=(",", ":"), ensure_ascii=False) if name in IN_JSON else value for name, value in fields.items()}
    assert structs.asdict(score(**given)) == structs.asdict(of_body)


@pytest.mark.parametrize("count", [1, 3, 200_000])
def test_tokens_are_packed(count: int) -> None:
    tokens = [2**32 - 1, *range(1, count)]
    assert score(model="m", token_ids=tokens) == structs.replace(decode_score(b'{"model": "m"}', JSON), token_ids=pack_tokens(tokens))


def test_tokens_may_come_in_pieces_and_one_by_one() -> None:
    in_pieces = messages.ScoreRequest(token_ids=[1, 2]).SerializeToString() + messages.ScoreRequest(token_ids=[3]).SerializeToString()
    alone = b"\x15\x04\0\0\0"
    assert asyncio.run(score_request_of(in_pieces + alone, asyncio.Lock())).token_ids == pack_tokens([1, 2, 3, 4])


def test_a_pick_has_its_own_fields() -> None:
    more = {"session_id": "s", "exclude": ["a", "b"], "output_tokens_expected": 0, "policy": "session"}
    message = messages.RouteRequest(model="m", prompt="p", **more).SerializeToString()
    expected = decode_route(json.dumps({"model": "m", "prompt": "p", **more}).encode(), JSON)
    assert asyncio.run(route_request_of(message, asyncio.Lock())) == expected
    assert expected.include_speculative, "the default of a pick"


def test_fields_of_newer_clients_are_passed_over() -> None:
    assert read_request("DoneRequest", messages.DoneRequest(id="a").SerializeToString() + b"\xfa\x06\x01x\xf0\x06\x01") == {"id": "a"}


@pytest.mark.parametrize(
    ("fields", "status", "detail"),
    [
        ({"model": "m", "limit": 0, "prompt": "p"}, 422, "limit: "),
        ({"model": "m", "messages": "{}"}, 422, "messages: should be a list of messages"),
        ({"model": "m", "messages": '[], "model": "other"'}, 400, "messages: should be JSON"),
        ({"model": "m", "messages": "[" * 100_000}, 400, "messages: should be JSON"),
        ({"model": "m", "tools": "[", "messages": "[]"}, 400, "tools: should be JSON"),
        ({"model": "m", "prompt": "p", "block_extra_keys": "[[-1, []]]"}, 422, "block_extra_keys"),
        ({"model": "m", "prompt": "p", "lora_name": "l" * 5_000}, 422, "lora_name: "),
        ({"model": "m" * 300_000, "prompt": "p"}, 422, "model: 300000 bytes"),
        ({"model": "m", "prompt": "p", "pods": ["a" * 150_000, "b" * 150_000]}, 422, "pods: 300000 bytes"),
        ({"model": "m", "block_hashes": [1] * (BLOCK_HASHES_MAX + 1)}, 422, f"block_hashes: there are {BLOCK_HASHES_MAX + 1}"),
    ],
)
def test_wrong_values_are_refused_as_in_a_body(fields: dict[str, Any], status: int, detail: str) -> None:
    with pytest.raises(Problem, match=detail) as caught:
        score(**fields)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"\x0a", "a field exceeds its message|a varint is cut"),
        (b"\x0a\x01\xff", "model: should be UTF-8"),
        (b"\x12\x03abc", "token_ids: should be numbers of 4 bytes"),
        (b"\x2a\x04abcd", "block_hashes: should be numbers of 8 bytes"),
        (b"\x32\0" * 70_000, "more than 65536 fields"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, detail: str) -> None:
    with pytest.raises(Problem, match=detail) as caught:
        asyncio.run(score_request_of(data, asyncio.Lock()))
    assert caught.value.status == 400


def test_others_have_their_turn_while_a_message_of_many_fields_is_read() -> None:
    async def turns() -> int:
        reading = asyncio.create_task(score_request_of(b"\x0a\x01m" + b"\x15\1\0\0\0" * 60_000, asyncio.Lock()))
        count = 0
        while not reading.done():
            await asyncio.sleep(0)
            count += 1
        assert (await reading).token_ids == b"\1\0\0\0" * 60_000
        return count

    assert asyncio.run(turns()) >= 20


def test_an_id_has_the_limit_that_it_has_in_a_body() -> None:
    assert done_request_of(messages.DoneRequest(id="x" * 64).SerializeToString()).id == "x" * 64
    with pytest.raises(Problem, match="id: "):
        done_request_of(messages.DoneRequest(id="x" * 65).SerializeToString())
