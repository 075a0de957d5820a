"""What it costs to tokenize here: a prompt, a chat, and a chat's next turn, whose earlier turns are remembered. In process, without HTTP.

The tokenizer is a byte-level BPE as present-day models have it, trained on this repository's documentation: a larger vocabulary costs about the same.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from scorer_api.tokens.local_tokenizer import LocalTokenizer
from scorer_api.tokens.tokenize_input import TokenizeInput

ROOT = Path(__file__).parent.parent
VOCABULARY = 8_000
SPECIAL = ["<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURN_BYTES = 1_000
TURNS = (1, 8, 64)
ROUNDS = 5
TIMEOUT_S = 30.0


class Tokenizing(Struct, frozen=True):
    """`kb`: of text. CPU of the process: of the whole text, and of one kB of it; the round that cost least."""

    input: str
    kb: float
    tokens: int
    cpu_us: int
    cpu_us_per_kb: float


def measure() -> list[Tokenizing]:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/**/*.md")))
    with tempfile.TemporaryDirectory() as folder:
        _write_files(Path(folder), text)
        return [row for turns in TURNS for row in _measure(folder, text, turns)]


def _write_files(folder: Path, text: str) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))


def _measure(folder: str, text: str, turns: int) -> list[Tokenizing]:
    words = [text[number * TURN_BYTES : (number + 1) * TURN_BYTES] for number in range(turns + 1)]
    prompt = TokenizeInput("bench", prompt="".join(words[:turns]))
    chat, longer = (TokenizeInput("bench", messages=_chat(words[:count])) for count in (turns, turns + 1))

    def anew() -> LocalTokenizer:
        return LocalTokenizer(folder, TIMEOUT_S)

    def with_earlier_turns() -> LocalTokenizer:
        tokenizer = anew()
        tokenizer.tokenize(chat)
        return tokenizer

    kb = turns * TURN_BYTES / 1000
    return [
        _row("prompt", kb, anew, prompt),
        _row("chat", kb, anew, chat),
        _row("chat, one turn more", kb + TURN_BYTES / 1000, with_earlier_turns, longer),
    ]


def _chat(words: list[str]) -> bytes:
    return msgspec.json.encode([{"role": ("user", "assistant")[number % 2], "content": each} for number, each in enumerate(words)])


def _row(name: str, kb: float, make: Callable[[], LocalTokenizer], given: TokenizeInput) -> Tokenizing:
    """Each round has a tokenizer of its own, so that nothing but what `make` tokenized is remembered."""
    best_ns, tokens = 2**63, b""
    for _ in range(ROUNDS):
        tokenizer = make()
        tokenizer.tokenize(TokenizeInput("bench", prompt="a first call sets things up"))
        before_ns = time.process_time_ns()
        tokens = tokenizer.tokenize(given)
        best_ns = min(best_ns, time.process_time_ns() - before_ns)
        tokenizer.close()
    return Tokenizing(name, kb, len(tokens) // 4, round(best_ns / 1000), round(best_ns / 1000 / kb, 1))
