"""Renders a chat to a prompt with a model's chat template, as engines do, in jinja2's sandbox.

The template comes from the operator's files, the messages from a client. Templates are written for transformers: its filters, functions and tags
are provided.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Limits the memory that a template can use on a hostile chat.
PROMPT_LENGTH_MAX = 16 * 2**20


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote. It has no effect on a prompt."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it this way

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(time_format: str) -> str:
    return datetime.now().strftime(time_format)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    """Like transformers' filter. jinja2's own escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment


class ChatTemplate:
    """`special`: name of each special token, such as bos_token, → its text. Raises jinja2.TemplateError for text that is no template."""

    def __init__(self, text: str, special: Mapping[str, str]) -> None:
        environment = _environment()
        self._template = environment.from_string(text)
        self._special = dict(special)
        self._takes_parts = _takes_parts(environment.parse(text))

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Any,
        kwargs: Mapping[str, Any],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt; with `continue_final_message` up to the end of the last message's text.

        Raises jinja2.TemplateError if the template rejects the chat, ValueError if the chat cannot be rendered.
        """
        if continue_final_message and (add_generation_prompt or not messages):
            raise ValueError("continue_final_message needs a last message, and goes without add_generation_prompt")
        values = {**self._special, "documents": None, **kwargs}
        values |= {
            "messages": list(map(self._message, messages)),
            "tools": tools and list(map(whole_tool, tools)),
            "add_generation_prompt": add_generation_prompt,
        }
        parts, length = [], 0
        for part in self._template.generate(**values):
            parts.append(part)
            length += len(part)
            if length > PROMPT_LENGTH_MAX:
                raise ValueError(f"the template makes more than {PROMPT_LENGTH_MAX} characters of it")
        prompt = "".join(parts)
        return _until_last_text(prompt, messages[-1].get("content")) if continue_final_message else prompt

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message as engines pass it to a template: text parts joined unless the template iterates over parts, tool-call arguments as objects."""
        prepared = dict(message)
        content = prepared.get("content")
        texts = [_text(part) for part in content] if isinstance(content, list) else [] if content is None else [_text(content)]
        prepared["content"] = [{"type": "text", "text": text} for text in texts] if self._takes_parts else "\n".join(texts)
        calls = prepared.get("tool_calls")
        if prepared.get("role") == "assistant" and isinstance(calls, list):
            if calls:
                prepared["tool_calls"] = [_call(call) for call in calls]
            else:
                del prepared["tool_calls"]
        return prepared


def _until_last_text(prompt: str, content: Any) -> str:
    """The prompt up to the end of the last message's text, as transformers cuts it: space that the template trimmed is no part of it."""
    text = _text(content[-1] if isinstance(content, list) and content else content)
    start = prompt.rfind(text.strip())
    if start < 0 or not text.strip():
        raise ValueError("the last message is not in what the template makes of it, so it cannot be continued")
    whole = text.lstrip()
    return prompt[: start + len(whole)] if prompt.startswith(whole, start) else prompt[: start + len(text.strip())]


def whole_tool(tool: Any) -> Any:
    """The tool as vLLM passes it to a template: optional fields of its function are present, and None."""
    if not isinstance(tool, dict) or not isinstance(tool.get("function"), dict):
        raise ValueError("a tool should be an object with a function")
    return {"type": "function", **tool, "function": {"name": None, "description": None, "parameters": None, **tool["function"]}}


def _text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") in ("text", "input_text") and isinstance(part.get("text"), str):
        return str(part["text"])
    raise ValueError("only parts of text can be tokenized here; send token_ids for others")


def _call(call: Any) -> Any:
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        raise ValueError("a tool call should be an object with a function")
    function = dict(call["function"])
    arguments = function.get("arguments")
    if not arguments:
        function["arguments"] = {}
    elif isinstance(arguments, str):
        function["arguments"] = json.loads(arguments)
    return {**call, "function": function}


def _takes_parts(template: nodes.Template) -> bool:
    """Whether the template iterates over the parts of a message's content. It gets parts then, else text. vLLM decides the same way."""
    return any(_is_content(loop.iter) for loop in template.find_all(nodes.For))


def _is_content(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Filter) and node.node is not None:
        return _is_content(node.node)
    if isinstance(node, nodes.Name):
        return node.name == "content"
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content"
