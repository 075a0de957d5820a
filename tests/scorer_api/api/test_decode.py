"""Decoding requests, and refusing what is not one."""

import asyncio
import json
import math
import tracemalloc
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from indexer.compiled import core
from indexer.core.block_keys import pack_tokens
from indexer.http.negotiation import JSON, MSGPACK
from indexer.http.problems import Problem
from scorer_api.api.decode import (
    FIELD_BYTES_MAX,
    UNSCANNED_BYTES_MAX,
    decode_route,
    decode_route_in_turns,
    decode_score,
    decode_score_in_turns,
    split_batch,
)
from scorer_api.api.prompt import EXTRA_KEYS_BYTES_MAX, prompt_of
from scorer_api.api.resolve import source_of


def refused(body: bytes | dict[str, Any], media_type: str = JSON) -> tuple[int, str]:
    """The status and the sentence that this body gets."""
    with pytest.raises(Problem) as raised:
        prompt_of(decode_score(body if isinstance(body, bytes) else encode(body, media_type), media_type))
    return raised.value.status, raised.value.detail


def encode(request: dict[str, Any], media_type: str) -> bytes:
    return msgspec.json.encode(request) if media_type == JSON else msgspec.msgpack.encode(request)


def test_a_salt_that_contradicts_the_extra_keys_is_refused() -> None:
    status, detail = refused({"model": "m", "token_ids": [], "cache_salt": "a", "block_extra_keys": [[0, ["b"]]]})
    assert status == 422
    assert detail.startswith("block_extra_keys[0]:")
    assert "cache_salt" in detail


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        *[(JSON, b""), (JSON, b"{"), (JSON, b"\xff"), (JSON, b'{"model": "m", "token_ids": []} x')],
        *[(MSGPACK, b""), (MSGPACK, b"\x82\xa5")],
    ],
)
def test_what_is_not_json_or_msgpack_is_malformed(media_type: str, body: bytes) -> None:
    status, detail = refused(body, media_type)
    assert status == 400
    assert media_type in detail


@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
def test_a_body_nested_too_deeply_is_malformed_and_no_crash(media_type: str) -> None:
    head = {"model": "m", "token_ids": [1], "block_extra_keys": [[0, ["@"]]]}
    whole = msgspec.json.encode(head) if media_type == JSON else msgspec.msgpack.encode(head)
    mark, nest = (b'"@"', b"[" * 100_000 + b"]" * 100_000) if media_type == JSON else (b"\xa1@", b"\x91" * 100_000 + b"\x90")
    status, _ = refused(whole.replace(mark, nest), media_type)
    assert status == 400


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"token_ids": [1, -1]}, ["token_ids[1]", "-1", "4294967295"]),
        ({"token_ids": [2**32]}, ["token_ids[0]", "4294967296", "4294967295"]),
        ({"token_ids": [0, 0, 2**70]}, ["token_ids[2]", "4294967295"]),
        ({"token_ids": [1.5]}, ["token_ids[0]", "int", "float"]),
        ({"token_ids": [True]}, ["token_ids[0]", "int", "bool"]),
        ({"token_ids": ["1"]}, ["token_ids[0]", "int", "str"]),
        ({"token_ids": "AQAAAA=="}, ["token_ids", "array"]),
        ({"model": 1}, ["model", "str", "int"]),
        ({"token_id": [1]}, ["token_id: there is no such field", "did you mean token_ids?"]),
        ({"prompt": ["hello"]}, ["prompt[0]", "int", "str"]),
        ({"prompt": [-1], "token_ids": None}, ["prompt[0]: -1", "4294967295"]),
        ({"prompt": 1}, ["prompt", "str", "array"]),
        ({"documents": {}}, ["documents", "a list of documents"]),
        ({"mm_processor_kwargs": []}, ["mm_processor_kwargs", "an object"]),
        ({"reasoning_effort": 1}, ["reasoning_effort", "str"]),
        ({"reasoning_effort": "x" * 4097}, ["reasoning_effort", "4096"]),
        ({"add_generation_prompt": 1}, ["add_generation_prompt", "bool"]),
        ({"messages": "hello"}, ["messages", "a list of messages"]),
        ({"limit": 0}, ["limit", ">= 1"]),
        ({"limit": -1}, ["limit", ">= 1"]),
        ({"limit": "1"}, ["limit", "int"]),
        ({"pods": "a"}, ["pods", "array"]),
        ({"pods": [1]}, ["pods[0]", "str"]),
        ({"lora_name": 1}, ["lora_name", "str"]),
        ({"lora_name": "x" * 4097}, ["lora_name", "4096"]),
        ({"cache_salt": ["a"]}, ["cache_salt", "str"]),
        ({"cache_salt": "x" * 4097}, ["cache_salt", "4096"]),
        ({"block_extra_keys": {"0": []}}, ["block_extra_keys", "array"]),
        ({"block_extra_keys": [[0]]}, ["block_extra_keys[0]", "2"]),
        ({"block_extra_keys": [[-1, []]]}, ["block_extra_keys[0]", ">= 0"]),
        ({"block_extra_keys": [["0", []]]}, ["block_extra_keys[0]", "int"]),
        ({"block_extra_keys": [[0, "img"]]}, ["block_extra_keys[0]", "array"]),
        ({"block_extra_keys": [[4, ["a"]], [4, ["b"]]]}, ["block_extra_keys[1]", "block 4", "twice"]),
        ({"block_extra_keys": [[2, [2**70]]]}, ["block_extra_keys", "block 2", "64-bit"]),
        ({"block_extra_keys": [[2, ["x" * EXTRA_KEYS_BYTES_MAX]]]}, ["block_extra_keys", "block 2", str(EXTRA_KEYS_BYTES_MAX)]),
    ],
)
def test_wrong_values_get_a_sentence_that_names_the_field_and_what_would_be_right(fields: dict[str, Any], words: list[str]) -> None:
    asked = {"model": "m", "token_ids": [1], **fields}
    status, detail = refused(_json_with_big_ints(asked))
    assert status == 422
    assert [word for word in words if word not in detail] == []


def _json_with_big_ints(asked: dict[str, Any]) -> bytes:
    return json.dumps(asked).encode()


def test_a_missing_model_is_named() -> None:
    status, detail = refused({"token_ids": [1]})
    assert status == 422
    assert "model" in detail


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"x"'])
def test_a_body_that_is_no_object_has_the_wrong_type(body: bytes) -> None:
    status, detail = refused(body)
    assert status == 422
    assert "object" in detail


@pytest.mark.parametrize("length", [1, 2, 3, 5, 4095])
def test_packed_tokens_of_an_odd_length_are_refused(length: int) -> None:
    status, detail = refused({"model": "m", "token_ids": b"\0" * length}, MSGPACK)
    assert status == 422
    assert detail.startswith("token_ids:")
    assert str(length) in detail
    assert "4 bytes" in detail


def test_packed_tokens_are_no_part_of_json() -> None:
    assert refused(b'{"model": "m", "token_ids": "AAAA"}')[0] == 422


@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "m" * 300_000),
        ("pods", ["pod"] * 100_000),
        ("cache_salt", "s" * 300_000),
        ("lora_name", "l" * 300_000),
        ("block_extra_keys", [[0, [[]] * 2_200_000]]),
    ],
)
def test_a_field_that_is_far_too_large_is_refused_before_it_is_decoded(media_type: str, field: str, value: Any) -> None:
    status, detail = refused({"model": "m", "token_ids": [1], field: value}, media_type)
    assert status == 422
    assert detail.startswith(f"{field}: ")
    assert str(FIELD_BYTES_MAX[field]) in detail


def test_only_tokens_may_fill_a_large_body() -> None:
    body = msgspec.json.encode({"model": "m", "token_ids": [1] * 200_000, "pods": ["pod"] * 9_000, "block_extra_keys": [[3, [["img", -1]]]]})
    assert len(body) > UNSCANNED_BYTES_MAX
    assert prompt_of(decode_score(body, JSON)).length == 200_000


@pytest.mark.parametrize(("body", "status"), [(b"[" + b" " * 300_000 + b"1]", 422), (b"{" + b" " * 300_000, 400), (b'{"x":' + b"[" * 300_000, 400)])
def test_a_large_body_that_is_no_request_is_refused_as_a_small_one(body: bytes, status: int) -> None:
    assert refused(body)[0] == status


# Bodies of other APIs

COMPLETION = {"temperature": 0.7, "stop": ["x"], "stream": True, "logit_bias": {"1": 2}, "n": 1, "user": "u", "response_format": {"type": "text"}}


@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
def test_fields_of_other_apis_are_passed_over(media_type: str) -> None:
    request = decode_score(encode({**COMPLETION, "model": "m", "prompt": "hello", "lora_name": "ad"}, media_type), media_type)
    assert (request.model, request.prompt, request.lora_name) == ("m", "hello", "ad")


@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
def test_they_hide_no_mistake_in_ours(media_type: str) -> None:
    status, detail = refused({**COMPLETION, "model": "m", "token_ids": [1], "include_speculativ": True}, media_type)
    assert (status, detail) == (422, "include_speculativ: there is no such field; did you mean include_speculative?")
    assert refused({**COMPLETION, "model": "m", "token_ids": [1], "limit": 0}, media_type)[0] == 422


@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
def test_what_is_malformed_behind_an_unknown_field_is_malformed(media_type: str) -> None:
    whole = encode({"model": "m", "temperature": 1, "prompt": "hello"}, media_type)
    assert refused(whole[:-1], media_type)[0] == 400


@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
def test_names_are_looked_at_beside_a_large_field(media_type: str) -> None:
    large = {"model": "m", "prompt": "x" * 600_000, "temperature": 1, "response_format": {"schema": "y" * 600_000}}
    assert decode_score(encode(large, media_type), media_type).model == "m"
    assert "did you mean limit?" in refused({**large, "limits": 1}, media_type)[1]


@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
@pytest.mark.parametrize("count", [0, 3, 150_000])
async def test_a_prompt_may_be_tokens_as_in_completions(media_type: str, count: int) -> None:
    tokens = [number * 7_919 % 2**32 for number in range(count)]
    body = encode({"model": "m", "prompt": tokens, "stream": True}, media_type)
    request = await decode_route_in_turns(body, media_type, asyncio.Lock())
    assert (request.prompt, request.token_ids) == (None, pack_tokens(tokens))
    assert request == decode_route(body, media_type)


@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
async def test_a_bad_token_of_a_long_prompt_is_named_by_its_place(media_type: str) -> None:
    tokens = [*range(100_000, 150_000), -1]
    with pytest.raises(Problem, match=r"prompt\[50000\]: -1"):
        await decode_score_in_turns(encode({"model": "m", "prompt": tokens}, media_type), media_type, asyncio.Lock())
    with pytest.raises(Problem, match=r"prompt\[50000\]: Expected"):
        await decode_score_in_turns(encode({"model": "m", "prompt": [*tokens[:-1], "x"]}, media_type), media_type, asyncio.Lock())


async def test_tokens_under_both_names_are_no_request() -> None:
    for count in (1, 150_000):
        body = encode({"model": "m", "prompt": [1] * count, "token_ids": [2]}, JSON)
        with pytest.raises(Problem, match="exactly one of"):
            source_of(await decode_score_in_turns(body, JSON, asyncio.Lock()))


# Batches

_ENCODE = {JSON: msgspec.json.encode, MSGPACK: msgspec.msgpack.encode}
_DECODE: dict[str, Any] = {JSON: msgspec.json.decode, MSGPACK: msgspec.msgpack.decode}


@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
def test_a_batch_is_parted_into_its_requests(media_type: str) -> None:
    requests: list[Any] = [{"model": "m", "token_ids": [1]}, 7, "text", [[]], None]
    assert [_DECODE[media_type](part) for part in split_batch(_ENCODE[media_type]({"requests": requests}), media_type)] == requests
    assert split_batch(_ENCODE[media_type]({"requests": []}), media_type) == []


@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
def test_a_batch_has_at_most_256_requests(media_type: str) -> None:
    assert len(split_batch(_ENCODE[media_type]({"requests": [1] * 256}), media_type)) == 256
    with pytest.raises(Problem, match="256") as raised:
        split_batch(_ENCODE[media_type]({"requests": [1] * 257}), media_type)
    assert raised.value.status == 422


@pytest.mark.parametrize(
    ("body", "status"),
    [
        *[(b"", 400), (b"{", 400), (b'{"requests": [', 400), (b'{"requests": [nul]}', 400), (b'{"requests": ' + b"[" * 100_000, 400)],
        *[(b"[]", 422), (b"{}", 422), (b'{"requests": {}}', 422), (b'{"requests": null}', 422), (b'{"requests": [], "more": 1}', 422)],
    ],
)
def test_a_body_that_is_not_a_batch_is_refused_as_a_whole(body: bytes, status: int) -> None:
    with pytest.raises(Problem) as raised:
        split_batch(body, JSON)
    assert raised.value.status == status
    assert status == 400 or "requests" in raised.value.detail


@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
async def test_many_tokens_are_packed_in_turns(media_type: str) -> None:
    tokens = [(number * 7_919) % 2**32 for number in range(150_000)]
    body = encode({"model": "m", "token_ids": tokens, "lora_name": "ad"}, media_type)
    request = await decode_score_in_turns(body, media_type, asyncio.Lock())
    assert isinstance(request.token_ids, bytes)
    assert prompt_of(request) == prompt_of(decode_score(body, media_type))
    assert isinstance((await decode_route_in_turns(body, media_type, asyncio.Lock())).token_ids, bytes)


@pytest.mark.parametrize("bad", ["x", -1, 2**32, None, 1.5])
@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
async def test_a_bad_one_among_many_tokens_gets_the_same_problem(media_type: str, bad: Any) -> None:
    body = encode({"model": "m", "token_ids": [*range(100_000), bad, *range(100_000)]}, media_type)
    with pytest.raises(Problem) as in_turns:
        prompt_of(await decode_score_in_turns(body, media_type, asyncio.Lock()))
    assert (in_turns.value.status, in_turns.value.detail) == refused(body, media_type)


async def test_tokens_of_another_object_are_left_where_they_are() -> None:
    tokens = list(range(100_000))
    body = encode({"model": "m", "messages": [{"role": "user", "token_ids": tokens}]}, JSON)
    request = await decode_score_in_turns(body, JSON, asyncio.Lock())
    assert request.token_ids is None
    assert msgspec.json.decode(bytes(request.messages)) == [{"role": "user", "token_ids": tokens}]  # type: ignore[arg-type]


@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
def test_a_prompt_or_a_chat_may_fill_the_body(media_type: str) -> None:
    text = "word " * 2_000_000
    assert decode_score(encode({"model": "m", "prompt": text}, media_type), media_type).prompt == text
    chat = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    request = decode_score(encode({"model": "m", "messages": chat}, media_type), media_type)
    assert msgspec.json.decode(bytes(request.messages)) == chat  # type: ignore[arg-type]


def test_a_large_chat_of_many_values_is_refused_in_msgpack() -> None:
    status, detail = refused({"model": "m", "messages": [[]] * 2_200_000}, MSGPACK)
    assert (status, "more than 65536 values" in detail) == (422, True)


_PACK = msgspec.msgpack.encode
NO_JSON = {
    "extension": (_PACK([msgspec.msgpack.Ext(5, b"abcd")]), "tools: there is an extension, which JSON has no word for"),
    "time stamp": (_PACK([{"at": datetime(2026, 1, 1, tzinfo=UTC)}]), "tools: there is a time stamp, which JSON has no word for"),
    "bin": (_PACK([{"data": b"abcd"}]), "tools: there is bin, which JSON has no word for"),
    "infinity": (_PACK([[math.inf]]), "tools: there is a number that is not finite, which JSON has no word for"),
    "nil as a key": (_PACK([{None: 1}]), "tools: the keys of objects should be texts"),
    "a number as a key": (_PACK([{7: 1}]), "tools: the keys of objects should be texts"),
    "a list as a key": (b"\x91\x81\x91\x01\x02", "tools: the keys of objects should be texts"),
    "an object as a key": (b"\x91\x81\x80\x02", "tools: the keys of objects should be texts"),
}


@pytest.mark.parametrize("what", list(NO_JSON))
def test_what_json_has_no_word_for_is_a_wrong_value_in_a_chat(what: str) -> None:
    tools, detail = NO_JSON[what]
    body = b"\x83" + _PACK("model") + _PACK("m") + _PACK("messages") + _PACK([{"role": "user", "content": "hi"}]) + _PACK("tools") + tools
    with pytest.raises(Problem) as caught:
        decode_score(body, MSGPACK)
    assert (caught.value.status, caught.value.detail) == (422, detail)


@pytest.mark.skipif(core is None, reason="the compiled core is not in use")
@pytest.mark.parametrize("field", ["token_ids", "prompt"])
@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
def test_no_token_becomes_an_object(media_type: str, field: str) -> None:
    """An integer takes 32 bytes and its place in a list eight; packed it takes four, of which there are three copies at a time at most."""
    tokens = list(range(100_000, 150_000))
    body = encode({"model": "m", field: tokens, "limit": 3}, media_type)
    tracemalloc.start()
    request = decode_score(body, media_type)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert request.token_ids == pack_tokens(tokens)
    assert (request.prompt, request.limit) == (None, 3)
    assert peak < 20 * len(tokens)
