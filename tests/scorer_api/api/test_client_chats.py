"""Chats of other APIs as chat completions."""

import json
from typing import Any

import pytest

from scorer_api.api.client_chats import NoChatError, chat_of_anthropic, chat_of_responses


def test_a_text_is_what_the_user_says() -> None:
    assert chat_of_responses("hi") == ([{"role": "user", "content": "hi"}], None)
    assert chat_of_responses("hi", "be kind")[0] == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]


def test_items_of_a_response_become_messages_and_calls_of_tools() -> None:
    parts = [{"type": "input_text", "text": "hi"}]
    items: list[Any] = [
        {"role": "user", "content": parts},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "42"},
        {"type": "message", "role": "assistant", "content": "it is 42"},
    ]
    tool = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
    messages, tools = chat_of_responses(items, None, [tool, {"type": "web_search"}])
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert messages == [
        {"role": "user", "content": parts},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "c"},
        {"role": "assistant", "content": "it is 42"},
    ]
    assert tools == [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]


USE = {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}


def test_blocks_of_anthropic_become_messages_parts_and_calls() -> None:
    given: list[Any] = [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "…"},
                {"type": "text", "text": "so"},
                {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "4"}, {"type": "text", "text": "2"}]},
                {"type": "text", "text": "and this?"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
            ],
        },
    ]
    system = [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}]
    messages, tools = chat_of_anthropic(given, system, [{"name": "f", "input_schema": {"type": "object"}}])
    (call,) = messages[2].pop("tool_calls")
    assert (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])) == ("c", "f", {"a": 1})
    assert messages == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "so"},
        {"role": "tool", "content": "42", "tool_call_id": "c"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "and this?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}],
        },
    ]
    assert tools == [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("given", [7, None, {}, ["text"], [{"type": "item_reference", "id": "x"}]])
def test_what_is_no_chat_of_responses_is_said(given: Any) -> None:
    with pytest.raises(NoChatError):
        chat_of_responses(given)


@pytest.mark.parametrize(
    "given",
    ["text", None, ["text"], [{"role": "user", "content": ["text"]}], [{"role": "user", "content": [{"type": "document"}]}]],
)
def test_what_is_no_chat_of_anthropic_is_said(given: Any) -> None:
    with pytest.raises(NoChatError):
        chat_of_anthropic(given)
