"""From a decoded request to the prompt that is looked up."""

from typing import Any

import msgspec

from indexer.http.negotiation import JSON, MSGPACK
from scorer_api.api.decode import decode_score
from scorer_api.api.prompt import prompt_of
from scorer_api.index.prompt import Prompt


def prompt(**fields: Any) -> Prompt:
    return prompt_of(decode_score(msgspec.msgpack.encode({"model": "m", "token_ids": [1], **fields}), MSGPACK))


def test_tokens_are_packed_as_little_endian_uint32() -> None:
    assert prompt(token_ids=[1, 256, 2**32 - 1]).tokens == b"\x01\0\0\0" + b"\0\x01\0\0" + b"\xff\xff\xff\xff"


def test_packed_tokens_are_taken_as_they_are() -> None:
    assert prompt(token_ids=b"\x01\0\0\0\x02\0\0\0") == prompt(token_ids=[1, 2])
    assert prompt(token_ids=b"").length == 0


def test_a_request_needs_a_model_and_tokens_only() -> None:
    assert prompt_of(decode_score(b'{"model": "m", "token_ids": [7]}', JSON)) == Prompt("m", b"\x07\0\0\0", None, None)


def test_empty_texts_mean_none() -> None:
    assert prompt(lora_name="", cache_salt="") == prompt()


def test_extra_keys_are_folded_beside_no_salt() -> None:
    # [[["img", -1]], null] in msgpack.
    assert prompt(block_extra_keys=[[3, [["img", -1]]]]).extra_keys == {3: b"\x92\x91\x92\xa3img\xff\xc0"}


def test_the_salt_belongs_to_the_first_block() -> None:
    # [[], "s"] in msgpack.
    assert prompt(cache_salt="s").extra_keys == {0: b"\x92\x90\xa1s"}
    assert prompt(block_extra_keys=[[0, ["s"]]]).extra_keys == {0: b"\x92\x90\xa1s"}
    assert prompt(cache_salt="s", block_extra_keys=[[0, ["s"]]]).extra_keys == {0: b"\x92\x90\xa1s"}


def test_a_text_in_a_later_block_is_no_salt() -> None:
    assert prompt(block_extra_keys=[[1, ["s"]]]).extra_keys == {1: b"\x92\x91\xa1s\xc0"}


def test_the_lora_name_among_the_extra_keys_is_dropped_once() -> None:
    assert prompt(lora_name="l", block_extra_keys=[[0, ["l"]], [1, ["l"]]]) == prompt(lora_name="l")
    assert prompt(lora_name="l", block_extra_keys=[[1, ["l", "l"]]]).extra_keys == {1: b"\x92\x91\xa1l\xc0"}


def test_blocks_without_extra_keys_are_left_out() -> None:
    assert prompt(block_extra_keys=[[0, []], [5, []]]) == prompt()
    assert prompt(block_extra_keys=[]) == prompt()


def test_binary_extra_keys_are_other_keys_than_texts() -> None:
    assert prompt(block_extra_keys=[[1, [b"x"]]]).extra_keys != prompt(block_extra_keys=[[1, ["x"]]]).extra_keys
