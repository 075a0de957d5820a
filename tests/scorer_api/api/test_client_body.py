"""What of a client's body a pick goes by."""

import json
from typing import Any

import msgspec
import pytest
from msgspec import UNSET, Raw

from indexer.http.problems import Problem
from scorer_api.api.client_body import CONVERTED_BYTES_MAX, ByLoad, ClientBody, read_client_body, tokens_of
from scorer_api.api.route_schemas import OUTPUT_TOKENS_MAX
from scorer_api.api.schemas import ScoreRequest

CHAT = [{"role": "user", "content": "hi"}]


def read(path: str = "", *, is_anthropic: bool = False, **body: Any) -> ClientBody:
    return read_client_body(json.dumps({"model": "m", **body}).encode(), path, is_anthropic=is_anthropic)


def request(found: ClientBody) -> ScoreRequest:
    assert found.by_load is None
    assert found.request is not None
    return found.request


def value(raw: Any) -> Any:
    assert isinstance(raw, Raw)
    return msgspec.json.decode(raw)


def test_a_chat_with_all_that_decides_its_tokens() -> None:
    more = {
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "documents": [{"text": "d"}],
        "chat_template_kwargs": {"a": 1},
        "mm_processor_kwargs": {"b": 2},
    }
    flags = {"add_generation_prompt": False, "continue_final_message": True, "reasoning_effort": "low", "chat_template": "t", "cache_salt": "s"}
    found = request(read("v1/chat/completions", messages=CHAT, temperature=1, pods=["x"], limit=0, policy="?", **more, **flags))
    assert found.model == "m"
    assert value(found.messages) == CHAT
    assert {name: value(getattr(found, name)) for name in more} == more
    assert {name: getattr(found, name) for name in flags} == flags
    assert (found.pods, found.limit) == (None, None), "fields of ours that a client happens to send mean nothing"


@pytest.mark.parametrize(("path", "field"), [("v1/completions", "prompt"), ("", "prompt"), ("/openai/v1/embeddings", "input"), ("", "input")])
@pytest.mark.parametrize("given", ["hi", ["hi", "other"]])
def test_the_first_text_stands_for_all(path: str, field: str, given: Any) -> None:
    found = read(path, **{field: given})
    assert (request(found).prompt, found.tokens) == ("hi", None)


@pytest.mark.parametrize("given", [[1, 2, 3], [[1, 2, 3], [4]], []])
def test_so_do_the_first_tokens(given: Any) -> None:
    found = read("v1/completions", prompt=given)
    assert (request(found).prompt, request(found).token_ids) == (None, [])
    assert found.tokens is not None
    assert tokens_of(found.tokens) == ([1, 2, 3] if given else [])


def test_embeddings_of_a_chat() -> None:
    assert value(request(read("v1/embeddings", messages=CHAT)).messages) == CHAT


@pytest.mark.parametrize("path", ["v1/responses", ""])
def test_a_response_is_a_chat(path: str) -> None:
    found = request(read(path, input="hi", instructions="be kind", max_output_tokens=5, previous_response_id=None))
    assert value(found.messages) == [{"role": "system", "content": "be kind"}, *CHAT]
    assert found.tools is UNSET


@pytest.mark.parametrize(("path", "header", "more"), [("v1/messages", False, {}), ("", True, {}), ("", False, {"system": "be kind"})])
def test_so_is_a_message_of_anthropic(path: str, header: bool, more: dict[str, Any]) -> None:
    found = request(read(path, is_anthropic=header, messages=CHAT, tools=[{"name": "f", "input_schema": {}}], max_tokens=5, **more))
    assert value(found.messages)[-1:] == CHAT
    assert value(found.tools)[0]["function"] == {"name": "f", "parameters": {}}


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        ("v1/rerank", {"query": "q"}, "other_api"),
        ("v1/chat/completions/render", {"messages": CHAT}, "other_api"),
        ("", {"query": "q"}, "other_api"),
        ("v1/chat/completions", {}, "no_prompt"),
        ("v1/completions", {"prompt": None}, "no_prompt"),
        ("v1/completions", {"prompt_embeds": "AA=="}, "no_prompt"),
        ("v1/messages", {}, "no_prompt"),
        ("v1/messages", {"messages": 7}, "no_prompt"),
        ("v1/responses", {"input": "hi", "previous_response_id": "r"}, "no_prompt"),
        ("v1/responses", {"input": "hi", "conversation": {"id": "c"}}, "no_prompt"),
        ("v1/responses", {"prompt": {"id": "stored"}}, "no_prompt"),
        ("v1/responses", {"input": "x" * CONVERTED_BYTES_MAX}, "over_limit"),
        ("v1/chat/completions", {"messages": "hi"}, "wrong_value"),
        ("v1/chat/completions", {"messages": CHAT, "add_generation_prompt": "no"}, "wrong_value"),
        ("v1/chat/completions", {"messages": CHAT, "cache_salt": "s" * 5_000}, "wrong_value"),
        ("v1/chat/completions", {"messages": CHAT, "tools": [{"x": "y" * 1_100_000}]}, "wrong_value"),
        ("v1/completions", {"prompt": ["hi"], "cache_salt": 7}, "wrong_value"),
    ],
)
def test_what_cannot_be_looked_up_is_picked_by_load_and_the_model_is_known(path: str, body: dict[str, Any], why: ByLoad) -> None:
    found = read(path, **body)
    assert (found.model, found.request, found.by_load) == ("m", None, why)


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b"7", b'{"model": 7}', b'{"model": "m", "messages": [}', b"\xff", b"[" * 100_000])
def test_what_is_malformed_is_no_body_of_any_client(body: bytes) -> None:
    with pytest.raises(Problem) as raised:
        read_client_body(body, "v1/chat/completions")
    assert raised.value.status == 400


@pytest.mark.parametrize(
    ("body", "session_id", "output_tokens"),
    [
        ({"max_tokens": 7, "session_id": "s"}, "s", 7),
        ({"max_tokens": 7, "max_completion_tokens": 8}, None, 8),
        ({"max_output_tokens": 10**9}, None, OUTPUT_TOKENS_MAX),
        ({"max_tokens": -1, "session_id": 7}, None, 0),
        ({"max_tokens": "many", "session_id": "s" * 5_000}, None, None),
        ({"max_tokens": None}, None, None),
    ],
)
def test_the_session_and_the_length_of_the_answer_help_where_they_are_known(
    body: dict[str, Any], session_id: str | None, output_tokens: int | None
) -> None:
    found = read("v1/chat/completions", messages=CHAT, **body)
    assert (found.by_load, found.session_id, found.output_tokens) == (None, session_id, output_tokens)


def test_a_body_may_name_no_model() -> None:
    assert read_client_body(b'{"prompt": "hi"}', "").model is None
    assert read(prompt="x" * 4_000).tokens_estimate in range(1_000, 1_020)
