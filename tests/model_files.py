"""The files of a model's tokenizer, made on the spot: byte-level BPE whose merges are few enough to follow by hand."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o")]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def vocabulary() -> dict[str, int]:
    """0 and 1 are special, then the bytes in the order of their letters, then what merges make."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {token: number for number, token in enumerate([*SPECIAL.values(), *letters, *(a + b for a, b in MERGES)])}


def make_files(folder: Path, template: Any = TEMPLATE, **config: Any) -> Path:
    """A prompt gets the bos token in front, a chat what its template says."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary(), merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL.values()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    # Neither may reach a prompt.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    chat = {} if template is None else {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps({**SPECIAL, **chat, **config}), encoding="utf-8")
    return folder


def ids_of(text: str) -> list[int]:
    """By hand: special tokens, `hello` in one, each other byte by itself; nothing in these tests merges otherwise."""
    known, letters = vocabulary(), {byte: letter for letter, byte in _bytes_of_letters().items()}
    found: list[int] = []
    while text:
        for word, number in ((word, known[word]) for word in ("<s>", "</s>", "hello")):
            if text.startswith(word):
                found.append(number)
                text = text[len(word) :]
                break
        else:
            found += [known[letters[byte]] for byte in text[0].encode()]
            text = text[1:]
    return found


def _bytes_of_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: those that can be printed stand for themselves, the others for what comes after 255, in their order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
