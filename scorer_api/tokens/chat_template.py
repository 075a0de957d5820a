"""A model's chat template: makes the prompt of a chat, as engines do, in jinja2's sandbox. Whoever gives the model's files writes the template;
whoever asks, the messages.

What templates are written for is what transformers gives them: its filters, functions and tags.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# A template in a loop over a hostile chat must not take all memory.
PROMPT_LENGTH_MAX = 16 * 2**20


class _Generation(Extension):
    """`{% generation %}` says which part the assistant wrote; for a prompt it is as if the tag were not there."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    """jinja2's own escapes what is special in HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return made


class ChatTemplate:
    """Raises jinja2.TemplateError for text that is no template. `special`: the names of special tokens, such as bos_token, with their texts."""

    def __init__(self, text: str, special: Mapping[str, str]) -> None:
        environment = _environment()
        self._template = environment.from_string(text)
        self._special = dict(special)
        self._takes_parts = _takes_parts(environment.parse(text))

    def render(self, messages: Sequence[dict[str, Any]], tools: Any, kwargs: Mapping[str, Any], *, add_generation_prompt: bool) -> str:
        """The prompt. Raises jinja2.TemplateError where the template refuses the chat, ValueError for a chat that cannot be made one."""
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
        return "".join(parts)

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        """As engines hand it to a template: parts of text in one text unless the template takes parts, arguments of tool calls as objects."""
        made = dict(message)
        content = made.get("content")
        texts = [_text(part) for part in content] if isinstance(content, list) else [] if content is None else [_text(content)]
        made["content"] = [{"type": "text", "text": text} for text in texts] if self._takes_parts else "\n".join(texts)
        calls = made.get("tool_calls")
        if made.get("role") == "assistant" and isinstance(calls, list):
            if calls:
                made["tool_calls"] = [_call(call) for call in calls]
            else:
                del made["tool_calls"]
        return made


def whole_tool(tool: Any) -> Any:
    """As vLLM hands it to a template: what a function may lack is there, and is none."""
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
    """Whether the template goes through the parts of a message's content: then it is given parts, else text. vLLM decides in this way too."""
    return any(_is_content(loop.iter) for loop in template.find_all(nodes.For))


def _is_content(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Filter) and node.node is not None:
        return _is_content(node.node)
    if isinstance(node, nodes.Name):
        return node.name == "content"
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content"
