"""Chats of the Responses API and of Anthropic's Messages API, as the chat completions that engines make of them before they render a prompt.

Engines differ in what they make of rare parts; where that is not known the chat begins to differ there, and what is before it still matches.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

Message = dict[str, Any]


class NoChatError(Exception):
    """There is nothing that could be rendered."""


def chat_of_responses(given: Any, instructions: Any = None, tools: Any = None) -> tuple[list[Message], list[Any] | None]:
    """Messages and tools of `input`, `instructions` and `tools` of a request to /v1/responses. Raises NoChatError."""
    messages: list[Message] = [{"role": "system", "content": instructions}] if isinstance(instructions, str) else []
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}], _tools(tools, "parameters")
    if not isinstance(given, list):
        raise NoChatError
    for item in given:
        if not isinstance(item, dict):
            raise NoChatError
        match item.get("type", "message"):
            case "message":
                messages.append({"role": item.get("role"), "content": item.get("content")})
            case "function_call":
                call = {"id": item.get("call_id"), "type": "function", "function": {"name": item.get("name"), "arguments": item.get("arguments")}}
                messages.append({"role": "assistant", "tool_calls": [call]})
            case "function_call_output":
                messages.append({"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")})
            case "reasoning":
                pass
            case _:
                raise NoChatError
    return messages, _tools(tools, "parameters")


def chat_of_anthropic(given: Any, system: Any = None, tools: Any = None) -> tuple[list[Message], list[Any] | None]:
    """Messages and tools of `messages`, `system` and `tools` of a request to /v1/messages. Raises NoChatError."""
    if not isinstance(given, list):
        raise NoChatError
    messages: list[Message] = []
    if text := _joined(system):
        messages.append({"role": "system", "content": text})
    for message in given:
        if not isinstance(message, dict):
            raise NoChatError
        content = message.get("content")
        if isinstance(content, list):
            messages += _messages_of_blocks(message.get("role"), content)
        else:
            messages.append({"role": message.get("role"), "content": content})
    return messages, _tools(tools, "input_schema")


def _messages_of_blocks(role: Any, blocks: Sequence[Any]) -> list[Message]:
    """Results of tools are messages of their own, before the others' text; calls of tools belong to the assistant's message."""
    results: list[Message] = []
    parts: list[Any] = []
    calls: list[Any] = []
    for block in blocks:
        if not isinstance(block, dict):
            raise NoChatError
        match block.get("type"):
            case "text":
                parts.append({"type": "text", "text": block.get("text")})
            case "image":
                parts.append({"type": "image_url", "image_url": {"url": _url_of(block.get("source"))}})
            case "tool_use":
                arguments = msgspec.json.encode(block.get("input") or {}).decode()
                calls.append({"id": block.get("id"), "type": "function", "function": {"name": block.get("name"), "arguments": arguments}})
            case "tool_result":
                results.append({"role": "tool", "content": _joined(block.get("content")), "tool_call_id": block.get("tool_use_id")})
            case "thinking" | "redacted_thinking":
                pass
            case _:
                raise NoChatError
    message: Message = {"role": role}
    if parts:
        # One text is a plain one, as vLLM has it.
        message["content"] = parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts
    if calls:
        message["tool_calls"] = calls
    return [*results, message] if parts or calls else results


def _url_of(source: Any) -> str:
    if not isinstance(source, dict):
        raise NoChatError
    if source.get("type") == "base64":
        return f"data:{source.get('media_type')};base64,{source.get('data')}"
    return str(source.get("url"))


def _joined(content: Any) -> str:
    """A text, or the texts of blocks, one after the other."""
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    return "".join(str(block.get("text", "")) for block in blocks if isinstance(block, dict) and block.get("type") == "text")


def _tools(given: Any, schema: str) -> list[Any] | None:
    """Functions, as chat completions have them. `schema`: the field that holds their parameters. Tools of the engine itself are left out."""
    if not isinstance(given, list):
        return None
    tools = [tool for tool in given if isinstance(tool, Mapping) and tool.get("type", "function") in ("function", "custom") and "name" in tool]
    found = [{"type": "function", "function": {**_described(tool), "parameters": tool.get(schema)}} for tool in tools]
    return found or None


def _described(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tool[name] for name in ("name", "description") if tool.get(name) is not None}
