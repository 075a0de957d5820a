"""Texts are cut only where the tokens of the pieces, one behind the other, are those of the whole text, for every kind of tokenizer."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from scorer_api.tokens.segments import PIECE_LENGTH_MIN, cuts_of
from tests.model_files import make_files

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|im_end|>\n", "<s>", "</s>"]
UNKNOWN = SPECIAL[3]
CORPUS = ["Hello there, how are you today?", "the prompt of a chat, with Ünïcödé and 漢字 and 12345", "  spaces\n\nand lines\t"] * 5
WORDS = [*SPECIAL, "<|im_", "end|>", " ", "\n", "Hello", "hello", " there", "é", "e\u0301", "漢字", "123", "▁", "<", "s>", "x" * 300]


def bpe(normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet() if isinstance(pre_tokenizer, pre_tokenizers.ByteLevel) else []
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False))
    return tokenizer


def byte_level() -> Tokenizer:
    tokenizer = bpe(None, pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 3), ("</s>", 4)])
    return tokenizer


def prepending() -> Tokenizer:
    return bpe(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None)


def metaspace(scheme: str) -> Callable[[], Tokenizer]:
    return lambda: bpe(normalizers.NFKC(), pre_tokenizers.Metaspace(prepend_scheme=scheme))


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False))
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token=UNKNOWN, show_progress=False))
    return tokenizer


def with_normalized_token() -> Tokenizer:
    """A token that is looked for in normalized text only, and one that is part of another."""
    tokenizer = bpe(normalizers.Lowercase(), pre_tokenizers.ByteLevel(add_prefix_space=True))
    tokenizer.add_tokens([AddedToken("hello", normalized=True), AddedToken("<|im_end|>\nHello", normalized=False)])
    return tokenizer


CUT = {
    "byte level": byte_level,
    "prepend": prepending,
    "metaspace always": metaspace("always"),
    "metaspace never": metaspace("never"),
    "word piece": word_piece,
    "unigram": unigram,
    "normalized token": with_normalized_token,
}


@cache
def made(name: str) -> Tokenizer:
    return CUT[name]()


def file_of(tokenizer: Tokenizer) -> Any:
    return json.loads(tokenizer.to_str())


@pytest.mark.parametrize("name", CUT)
@settings(max_examples=60)
@given(words=st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=60), times=st.integers(1, 3))
def test_the_tokens_of_the_pieces_are_those_of_the_text(name: str, words: list[str], times: int) -> None:
    tokenizer, text = made(name), "".join(words * times)
    cuts = cuts_of(file_of(tokenizer))
    assert cuts is not None
    pieces = cuts.pieces(text)
    assert "".join(pieces) == text
    ids = [number for piece in pieces for number in tokenizer.encode(piece, add_special_tokens=False).ids]
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids


@settings(max_examples=60)
@given(words=st.lists(st.sampled_from(WORDS), max_size=60), more=st.lists(st.sampled_from(WORDS), max_size=10))
def test_what_is_added_behind_a_piece_leaves_the_pieces_before_it(words: list[str], more: list[str]) -> None:
    cuts = cuts_of(file_of(made("byte level")))
    assert cuts is not None
    *before, _ = cuts.pieces("".join(words) + "<|im_start|>")
    assert all(len(piece) >= PIECE_LENGTH_MIN for piece in before)
    # A longer added token that begins where the last one did may take its place.
    after = cuts.pieces("".join(words) + "<|im_start|>" + "".join(more))
    assert after[: len(before)] == before


def with_stripping(name: str) -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<|aside|>", **{name: True})])
    return tokenizer


@pytest.mark.parametrize("name", ["lstrip", "rstrip", "single_word"])
def test_texts_are_whole_where_a_token_looks_aside(name: str) -> None:
    assert cuts_of(file_of(with_stripping(name))) is None


def test_texts_are_whole_where_the_beginning_or_chance_matters_or_a_part_is_unknown() -> None:
    first = metaspace("first")()
    assert cuts_of(file_of(first)) is None
    sequence = byte_level()
    sequence.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.Metaspace(prepend_scheme="first")])
    assert cuts_of(file_of(sequence)) is None
    file = file_of(byte_level())
    assert cuts_of(file | {"model": file["model"] | {"dropout": 0.1}}) is None
    assert cuts_of(file | {"normalizer": {"type": "Newer"}}) is None
    assert cuts_of(file | {"model": {"type": "Newer"}}) is None
    assert cuts_of(file | {"added_tokens": []}) is None


def test_the_tokenizer_of_the_tests_is_cut(tmp_path: Path) -> None:
    file = json.loads((make_files(tmp_path) / "tokenizer.json").read_text())
    cuts = cuts_of(json.loads(Tokenizer.from_str(json.dumps(file)).to_str()))
    assert cuts is not None
