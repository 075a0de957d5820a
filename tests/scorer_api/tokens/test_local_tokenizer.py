"""Tokens of prompts and chats from a model's files."""

import asyncio
import json
import threading
import time
from array import array
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from indexer.core.block_keys import TOKEN_BYTES
from indexer.errors import SettingError
from indexer.http.problems import Problem
from indexer.limits import TokenizeLimits
from indexer.main.read_settings import read_settings
from scorer_api.tokens import local_tokenizer
from scorer_api.tokens.local_tokenizer import LocalTokenizer, read_tokenizers
from scorer_api.tokens.tokenize_input import TokenizeInput
from tests.engine import Engine, stored
from tests.model_files import TEMPLATE, ids_of, make_files
from tests.running import Command, Running

MESSAGES = [{"role": "user", "content": "hello, 日本"}, {"role": "assistant", "content": "ok"}]
TOOL_USE = "{% set f = tools[0].function %}{{ tools[0].type }} {{ f.name }} {{ f.description is none }}{{ f.parameters is none }}"
FUNCTION = {"type": "function", "function": {"name": "f"}}


def chat(messages: Any, tools: Any = None, kwargs: Any = None, *, generation: bool = True) -> TokenizeInput:
    tools, kwargs = (None if value is None else json.dumps(value).encode() for value in (tools, kwargs))
    return TokenizeInput("m", None, json.dumps(messages).encode(), tools, kwargs, generation)


def ids(folder: Path, tokenize_input: TokenizeInput) -> list[int]:
    tokenizer = LocalTokenizer(str(folder), 30)
    try:
        return array("I", asyncio.run(tokenizer.tokens(tokenize_input))).tolist()
    finally:
        tokenizer.close()


def said(folder: Path, tokenize_input: TokenizeInput) -> str:
    with pytest.raises(Problem) as raised:
        ids(folder, tokenize_input)
    assert raised.value.status == 422
    return raised.value.detail


def test_a_prompt_gets_the_special_tokens_and_is_neither_cut_nor_filled_up(tmp_path: Path) -> None:
    folder = make_files(tmp_path)
    assert ids(folder, TokenizeInput("m", "hello")) == [0, *ids_of("hello")]
    assert ids(folder, TokenizeInput("m", "")) == [0]
    text = "hello, hello, 🎉 and </s> more than eight"
    assert ids(folder, TokenizeInput("m", text)) == [0, *ids_of(text)]
    assert len(ids_of("hello")) == 1


def test_a_chat_gets_what_its_template_says_and_no_more(tmp_path: Path) -> None:
    folder = make_files(tmp_path)
    text = "<s><|user|>\nhello, 日本</s>\n<|assistant|>\nok</s>\n"
    assert ids(folder, chat(MESSAGES)) == ids_of(text + "<|assistant|>\n")
    assert ids(folder, chat(MESSAGES, generation=False)) == ids_of(text)
    assert ids(folder, chat([])) == ids_of("<s><|assistant|>\n")


def test_the_template_in_a_file_of_its_own_counts_more(tmp_path: Path) -> None:
    folder = make_files(tmp_path, "in the config")
    (folder / "chat_template.jinja").write_text("in a file {{ bos_token }}", encoding="utf-8")
    assert ids(folder, chat([])) == ids_of("in a file <s>")


def test_one_of_several_templates_by_name(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": TOOL_USE}]
    folder = make_files(tmp_path, named)
    assert ids(folder, chat([])) == ids_of("plain")
    # As vLLM hands a tool to a template: what a function lacks is there, and is none.
    assert ids(folder, chat([], [FUNCTION])) == ids_of("function f TrueTrue")


def test_special_tokens_from_either_file_and_in_either_form(tmp_path: Path) -> None:
    template = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token is defined }}"
    folder = make_files(tmp_path, template, bos_token={"content": "<s>", "special": True}, unk_token=None)
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "PAD"}, "eos_token": "other"}), encoding="utf-8")
    assert ids(folder, chat([])) == ids_of("<s>|</s>|PAD|False")


@pytest.mark.parametrize(
    ("template", "made"),
    [
        # Blocks take their line's end and the spaces before them along.
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
        ("{% for n in [1, 2, 3] %}{% if n == 2 %}{% continue %}{% endif %}{{ n }}{% endfor %}", "13"),
        ("{% for n in [1, 2, 3] %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}", "1"),
        ("a{% generation %}b{% endgeneration %}c", "abc"),
        ("{{ {'b': '<é>', 'a': 1} | tojson }}", '{"b": "<é>", "a": 1}'),
        ("{{ [1, 2] | tojson(indent=1) }}", "[\n 1,\n 2\n]"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "2"),
        ("{{ enable_thinking }}{{ missing }}{{ documents is none }}", "FalseTrue"),
        ("{{ messages[0]['content'].split(', ')[0].upper() }}", "HELLO"),
        ("{{ messages[0] | length }}{{ tools is none }}", "2True"),
    ],
)
def test_templates_find_what_they_are_written_for(tmp_path: Path, template: str, made: str) -> None:
    assert ids(make_files(tmp_path, template), chat(MESSAGES, None, {"enable_thinking": False})) == ids_of(made)


def test_parts_of_text_are_one_text_or_stay_parts_as_the_template_takes_them(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, {"role": "user", "content": "c"}]
    joined = make_files(tmp_path / "joined", "{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert ids(joined, chat(messages)) == ids_of("[a\nb][c]")
    parted = make_files(tmp_path / "parted", "{% for m in messages %}{% for part in m['content'] %}[{{ part.text }}]{% endfor %}{% endfor %}")
    assert ids(parted, chat(messages)) == ids_of("[a][b][c]")
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    assert "only parts of text" in said(joined, chat(image))


def test_documents_and_effort_reach_the_template_and_another_template_does_not_reach_us(tmp_path: Path) -> None:
    folder = make_files(tmp_path, "{{ documents[0].text }}{{ reasoning_effort }}{{ kind }}")
    asked = TokenizeInput("m", messages=b"[]", chat_template_kwargs=b'{"kind": 1}', documents=b'[{"text": "d"}]', reasoning_effort="low")
    assert ids(folder, asked) == ids_of("dlow1")
    assert "chat_template: our own tokenizer" in said(folder, TokenizeInput("m", messages=b"[]", chat_template="{{ x }}"))


CONTINUED = "{% for m in messages %}<{{ m.role }}>{{ m.content TRIM }}</s>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


@pytest.mark.parametrize(
    ("trim", "last", "made"),
    [
        ("", "it is ", "<user>hi</s>\n<assistant>it is "),
        (" | trim", "it is ", "<user>hi</s>\n<assistant>it is"),
        (" | trim", " it", "<user>hi</s>\n<assistant>it"),
        ("", [{"type": "text", "text": "it"}], "<user>hi</s>\n<assistant>it"),
    ],
)
def test_a_chat_is_continued_behind_the_last_text(tmp_path: Path, trim: str, last: Any, made: str) -> None:
    folder = make_files(tmp_path, CONTINUED.replace("TRIM", trim))
    messages = json.dumps([{"role": "user", "content": "hi"}, {"role": "assistant", "content": last}]).encode()
    assert ids(folder, TokenizeInput("m", messages=messages, add_generation_prompt=False, continue_final_message=True)) == ids_of(made)


@pytest.mark.parametrize(
    ("messages", "generation", "why"),
    [
        (b"[]", False, "needs a last message"),
        (b'[{"role": "user", "content": "hi"}]', True, "without add_generation_prompt"),
        (b'[{"role": "user", "content": " "}]', False, "cannot be continued"),
        (b'[{"role": "user"}]', False, "only parts of text"),
    ],
)
def test_what_cannot_be_continued_is_refused(tmp_path: Path, messages: bytes, generation: bool, why: str) -> None:
    folder = make_files(tmp_path, CONTINUED.replace("TRIM", ""))
    assert why in said(folder, TokenizeInput("m", messages=messages, add_generation_prompt=generation, continue_final_message=True))


def test_arguments_of_tool_calls_are_objects(tmp_path: Path) -> None:
    folder = make_files(
        tmp_path, "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments.a }}{% endfor %}{% endfor %}"
    )
    calls = [
        {"type": "function", "function": {"name": "f", "arguments": '{"a": 7}'}},
        {"function": {"arguments": {"a": 8}}},
        {"function": {"name": "g"}},
    ]
    assert ids(
        folder, chat([{"role": "assistant", "content": None, "tool_calls": calls}, {"role": "assistant", "content": "x", "tool_calls": []}])
    ) == ids_of("78x")
    assert "refuses it" in said(folder, chat([{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}]))


REFUSED = {
    "raise_exception": ("{{ raise_exception('roles must\nalternate') }}", "messages: the chat template refuses it: roles must alternate"),
    "an attribute": ("{{ messages[7].content.a.b }}", "refuses it"),
    "types": ("{{ messages[0].content + 1 }}", "refuses it"),
    "division": ("{{ 1 / 0 }}", "division by zero"),
    "the sandbox": ("{{ messages.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "changing what is given": ("{{ messages.append(1) }}", "unsafe"),
    "endless ranges": ("{% for n in range(10000000) %}x{% endfor %}", "Range too big"),
    "endless text": ("{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "more than 16777216 characters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_template_refuses_is_told_to_whoever_asked(tmp_path: Path, name: str) -> None:
    template, why = REFUSED[name]
    assert why in said(make_files(tmp_path, template), chat(MESSAGES))


def test_the_earlier_turns_of_a_chat_are_tokenized_once_and_its_tokens_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(make_files(tmp_path))
    tokenizer = LocalTokenizer(folder, 2.0)
    encoded: list[str] = []
    encode = tokenizer._encode

    def note(text: str, adds_special: bool) -> bytes:
        encoded.append(text)
        return encode(text, adds_special)

    monkeypatch.setattr(tokenizer, "_encode", note)
    messages: list[dict[str, str]] = []
    for number in range(6):
        messages.append({"role": ("user", "assistant")[number % 2], "content": f"hello {number} " * 50})
        encoded.clear()
        chat = TokenizeInput("m", messages=json.dumps(messages).encode())
        assert tokenizer.tokenize(chat) == LocalTokenizer(folder, 2.0).tokenize(chat)
        # The newest turn, and what follows it.
        assert sum(map(len, encoded)) < 600, encoded
    monkeypatch.setattr(local_tokenizer, "TEXT_PIECES_MAX", 3)
    encoded.clear()
    assert tokenizer.tokenize(chat) == LocalTokenizer(folder, 2.0).tokenize(chat)
    assert len(encoded) == 1


def test_chats_that_are_none_are_refused(tmp_path: Path) -> None:
    folder = make_files(tmp_path)
    assert "each an object" in said(folder, chat([1]))
    assert "nested too deeply" in said(folder, TokenizeInput("m", None, b"[" * 100_000 + b"]" * 100_000))
    assert "a tool should be an object" in said(folder, chat([], [1]))
    assert "no chat template" in said(make_files(tmp_path / "without", None), chat([]))
    assert "UTF-8" in said(folder, TokenizeInput("m", "\ud800"))


async def test_what_takes_too_long_is_given_up_and_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = LocalTokenizer(str(make_files(tmp_path)), 0.2)
    may_end = threading.Event()
    real = tokenizer.tokenize
    monkeypatch.setattr(tokenizer, "tokenize", lambda tokenize_input: may_end.wait(30) and real(tokenize_input))

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    found = await asyncio.gather(*(tokenizer.tokens(TokenizeInput("m", "a")) for _ in range(4)), return_exceptions=True)
    ticking.cancel()
    assert [problem.status for problem in found if isinstance(problem, Problem)] == [502] * 4
    assert ticks > 2, "the loop went on meanwhile"
    may_end.set()
    tokenizer._timeout_s = 30
    assert len(await tokenizer.tokens(TokenizeInput("m", "a"))) == 8
    tokenizer.close()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("tokenizer.json", None, "should be a folder with tokenizer.json"),
        ("tokenizer.json", "{}", "is no tokenizer"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json should be an object"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON"),
        ("chat_template.jinja", "{% if %}", "its chat template default is none that jinja2 can read"),
        ("tokenizer_config.json", '{"chat_template": 7}', "its chat template default is none"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path: Path, name: str, content: str | None, why: str) -> None:
    file = make_files(tmp_path) / name
    if content is None:
        file.unlink()
    else:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(SettingError) as raised:
        read_tokenizers({"m": str(tmp_path)}, TokenizeLimits())
    assert raised.value.key == "--tokenizer"
    assert why in raised.value.allowed


def test_without_the_packages_it_says_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_tokenizer, "IS_AVAILABLE", False)
    with pytest.raises(SettingError, match=r"pip install 'kv-event-indexer\[tokenizers\]'"):
        LocalTokenizer(str(tmp_path), 1)


def test_a_model_with_a_tokenizer_asks_no_engine(tmp_path: Path) -> None:
    folder = make_files(tmp_path)
    tokens = ids_of("<s><|user|>\nhello, 日本</s>\n<|assistant|>\nok</s>\n<|assistant|>\n")
    count = len(tokens) // 4
    with Engine() as engine, Running(engine.spec(http="http://127.0.0.1:9"), tokenizer=f"m={folder}") as service:
        engine.publish(stored(range(1, count + 1), tokens[: 4 * count]))
        service.wait_for(sequence=0)
        answer = service.http.post(f"{service.url}/v1/score", json={"model": "m", "messages": MESSAGES}).json()
        assert (answer["tokens"], answer["pods"][0]["matched_blocks"]) == (len(tokens), (len(tokens) - 1) // 4)
        assert service.metric("kv_indexer_tokenize_texts_total", source="local") == 1


def test_the_setting_is_a_repeated_flag_a_variable_and_a_list_in_the_file(tmp_path: Path) -> None:
    folder = make_files(tmp_path / "files", TEMPLATE)
    pairs = (f"a={folder}", f"b={folder}")
    assert read_settings({"tokenizer": list(pairs)}, [], {}).tokenizer == pairs
    assert read_settings({}, [], {"KV_INDEXER_TOKENIZER": f"a={folder}; b={folder};"}).tokenizer == pairs
    assert read_settings({}, [], {}, {"tokenizer": list(pairs)}).tokenizer == pairs
    with pytest.raises(SettingError, match="tokenizer="):
        read_settings({}, [], {}, {"tokenizer": "a=b"})


@pytest.mark.parametrize(
    ("words", "why"),
    [(["a"], "should be my/model=DIR"), (["a=/x", "a=/x"], "a is given twice"), (["a=/no/such/folder"], "should be a folder with tokenizer.json")],
)
def test_what_is_wrong_stops_the_start(words: list[str], why: str) -> None:
    flags = [part for word in words for part in ("--tokenizer", word)]
    with Command("serve", "--port", "0", *flags) as service:
        assert service.process.wait(30) == 2
    (line,) = service.lines
    assert [word for word in ("--tokenizer=", why) if word not in line] == []


def test_a_long_text_lets_other_threads_run(tmp_path: Path) -> None:
    """The library holds the interpreter while it encodes one text, unless it is asked for a batch."""
    tokenizer = LocalTokenizer(str(make_files(tmp_path)), 30)
    text = "hello x" * 60_000
    beats: list[float] = []
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.001):
            beats.append(time.monotonic())

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        began = time.monotonic()
        assert len(tokenizer.tokenize(TokenizeInput("m", text))) == TOKEN_BYTES * (1 + 3 * 60_000)
        took = time.monotonic() - began
    finally:
        ended.set()
        beating.join()
    pauses = [after - before for before, after in pairwise([began, *beats, began + took])]
    assert max(pauses) < took / 3


@pytest.mark.parametrize(
    "asked", [TokenizeInput("m", "ö" * 51), TokenizeInput("m", None, messages=b'[{"role":"user","content":"' + b"x" * 90 + b'"}]')]
)
def test_a_text_that_is_too_long_is_refused(tmp_path: Path, asked: TokenizeInput) -> None:
    tokenizer = LocalTokenizer(str(make_files(tmp_path)), 30, text_bytes_max=100)
    assert tokenizer.tokenize(TokenizeInput("m", "ö" * 50))
    with pytest.raises(Problem, match=r"at most 100 \(tokenize_text_bytes_max\)") as raised:
        tokenizer.tokenize(asked)
    assert raised.value.status == 422
