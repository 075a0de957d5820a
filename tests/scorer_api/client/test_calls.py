"""What the client sends, and how it reads what comes back."""

import ctypes
import struct
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from indexer.http import schemas as http_schemas
from indexer.http.problems import ProblemDetails
from scorer_api.api import schemas
from scorer_api.client import calls, responses
from scorer_api.client.calls import Service, packed, trusted
from scorer_api.explain import hints
from scorer_api.explain import reasons as explaining

# Written out: 1, 2^32 - 1 and 258 as little-endian uint32.
PACKED = bytes.fromhex("01000000 ffffffff 02010000")
TOKENS = [1, 2**32 - 1, 258]


@pytest.mark.parametrize(
    "tokens",
    [
        TOKENS,
        tuple(TOKENS),
        iter(TOKENS),
        array("I", TOKENS),
        array("q", TOKENS),
        array("Q", TOKENS),
        (ctypes.c_uint32 * 3)(*TOKENS),
        (ctypes.c_int64 * 3)(*TOKENS),
        (ctypes.c_uint32.__ctype_be__ * 3)(*TOKENS),
        (ctypes.c_int64.__ctype_be__ * 3)(*TOKENS),
        memoryview(array("I", [1, 7, 2**32 - 1, 7, 258, 7]))[::2],
        PACKED,
        bytearray(PACKED),
        memoryview(PACKED),
    ],
)
def test_tokens_are_packed_whatever_they_are_in(tokens: Iterable[int]) -> None:
    assert packed(tokens) == PACKED


@pytest.mark.parametrize("tokens", [array("h", [258, 1]), array("B", [2, 1]), (ctypes.c_int16.__ctype_be__ * 2)(258, 1)])
def test_narrow_integers_are_tokens_and_not_bytes(tokens: Iterable[int]) -> None:
    assert packed(tokens) == struct.pack("<2I", *tokens)


def test_no_tokens_are_tokens_too() -> None:
    assert packed([]) == packed(array("I")) == packed(b"") == b""


@pytest.mark.parametrize(
    "tokens",
    [
        [-1],
        [2**32],
        [1.0],
        ["1"],
        "1 2",
        5,
        array("i", [-1]),
        array("q", [2**32]),
        array("d", [1.0]),
        (ctypes.c_bool * 1)(True),
        memoryview(array("I", [1, 2, 3, 4])).cast("B").cast("I", (2, 2)),
    ],
)
def test_what_are_no_tokens_is_refused_and_named(tokens: Any) -> None:
    with pytest.raises(ValueError, match="token_ids"):
        packed(tokens)


def test_a_request_holds_what_was_given_and_nothing_else() -> None:
    call = calls.score_call("m", [1], {"lora_name": None, "pods": ("a", "b"), "limit": 2})
    assert call.method == "POST"
    assert call.content is not None
    assert msgspec.msgpack.decode(call.content) == {"model": "m", "token_ids": b"\x01\0\0\0", "pods": ["a", "b"], "limit": 2}
    call = calls.score_call("m", None, {"messages": [{"role": "user", "content": "hi"}], "block_hashes": None})
    assert call.content is not None
    assert msgspec.msgpack.decode(call.content) == {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(ValueError, match="msgpack"):
        calls.score_call("m", [1], {"chat_template_kwargs": {"x": object()}})


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://h", "http://", "http://h:x", "", "http://[::1"])
def test_an_address_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"http://host:port"):
        Service.at(url, None)


def test_no_password_is_shown() -> None:
    assert Service.at("https://me:secret@h:1/x/?token=secret", None).shown_url == "https://h:1/x"


@pytest.mark.parametrize("token", ["", "a b", "a\r\nX: y", "é"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValueError, match="token") as raised:
        Service.at("http://h", token).headers(calls.PODS)
    assert not token or token not in str(raised.value)


def test_a_token_is_asked_for_anew_each_time() -> None:
    tokens = iter(["one", "two"])
    service = Service.at("http://h", lambda: next(tokens))
    assert [service.headers(calls.PODS)["Authorization"] for _ in range(2)] == ["Bearer one", "Bearer two"]


def test_a_file_without_certificates_is_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ca_file.*no-such"):
        trusted(True, tmp_path / "no-such")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="PEM"):
        trusted(True, str(tmp_path / "text"))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (responses.ScoreAnswer, schemas.ScoreAnswer),
        (responses.PodAnswer, schemas.PodAnswer),
        (responses.ViewAnswer, schemas.ViewAnswer),
        (responses.ExplainAnswer, schemas.ExplainAnswer),
        (responses.ExplainedPod, explaining.PodExplained),
        (responses.ExplainedRank, explaining.RankExplained),
        (responses.PodLoad, explaining.PodLoad),
        (responses.End, explaining.End),
        (responses.ExplainedModel, explaining.About),
        (responses.Hint, hints.Hint),
        (responses.PodsAnswer, http_schemas.PodsAnswer),
        (responses.PodStatus, http_schemas.PodStatus),
        (responses.StreamStatus, http_schemas.PodStatus.__annotations__["streams"].__args__[0]),
        (responses.Problem, ProblemDetails),
    ],
)
def test_the_client_reads_no_field_that_the_service_does_not_say(ours: type[msgspec.Struct], theirs: type[msgspec.Struct]) -> None:
    assert set(ours.__struct_fields__) <= set(theirs.__struct_fields__)


def test_fields_and_words_of_a_newer_service_are_no_error() -> None:
    stream = {"rank": 0, "sequence": 1, "trust": "half", "connected": True, "block_size": 16, "blocks": {"nvme": 1}, "batches": 1, "gaps": 0}
    stream |= {"replayed": 0, "restarts": 0, "last_batch_age_s": 1, "last_error": None, "mood": "good"}
    (pod,) = calls.PODS.decode(msgspec.json.encode({"pods": [{"pod": "a", "model": "m", "streams": [stream], "zone": "b"}], "next": None})).pods
    assert (pod.streams[0].trust, pod.streams[0].blocks) == ("half", {"nvme": 1})
