"""Cuts texts where the tokens on both sides do not depend on each other, so that a chat's earlier turns are tokenized once. Pure.

A tokenizer first takes the added tokens that are not normalized out of a text: from left to right, the longest one at each place. What lies between
two of them is normalized, split and encoded by itself, and the ids are put one behind the other. So the tokens of a text are those of what ends with
such an added token, and then those of the rest, unless something looks across it:

- an added token that strips the spaces beside it, or has to be a word by itself, looks at its neighbours;
- a Metaspace with the scheme `first` treats the beginning of a text differently;
- a model with dropout is random.

`cuts_of` returns None then, and for a file that is made of anything that is not known here.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Shorter pieces cost more to look up than to tokenize.
PIECE_LENGTH_MIN = 256
MODELS = {"BPE", "Unigram", "WordLevel", "WordPiece"}
NORMALIZERS = {
    *("BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend", "Replace", "Strip", "StripAccents"),
    "Sequence",
}
PRE_TOKENIZERS = {
    *("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation", "Sequence", "Split", "UnicodeScripts"),
    *("Whitespace", "WhitespaceSplit"),
}
# They add tokens to prompts, and none where special tokens are not asked for.
POST_PROCESSORS = {"BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence", "TemplateProcessing"}
_LOOKS_ASIDE = ("lstrip", "rstrip", "single_word")


class Cuts:
    """`tokens`: the added tokens behind which a text may be cut."""

    def __init__(self, tokens: list[str]) -> None:
        self._pattern = re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))

    def pieces(self, text: str) -> list[str]:
        """The text in pieces. All but the last end with an added token; where they end depends on nothing behind them."""
        pieces, start = [], 0
        for found in self._pattern.finditer(text):
            if found.end() - start >= PIECE_LENGTH_MIN:
                pieces.append(text[start : found.end()])
                start = found.end()
        return [*pieces, text[start:]]


def cuts_of(file: Mapping[str, Any]) -> Cuts | None:
    """Of the content of a tokenizer.json; None where texts cannot be cut."""
    added = file.get("added_tokens") or []
    if any(token.get(name) for token in added for name in _LOOKS_ASIDE):
        return None
    kinds = ((file.get("normalizer"), NORMALIZERS), (file.get("pre_tokenizer"), PRE_TOKENIZERS), (file.get("post_processor"), POST_PROCESSORS))
    for part, known in kinds:
        if any(each.get("type") not in known or each.get("prepend_scheme") == "first" for each in _parts(part)):
            return None
    model = file.get("model") or {}
    if model.get("type") not in MODELS or model.get("dropout"):
        return None
    tokens = [token["content"] for token in added if not token.get("normalized") and token["content"]]
    return Cuts(tokens) if tokens else None


def _parts(part: Any) -> Iterator[Mapping[str, Any]]:
    """A part of the pipeline, and those that a sequence is made of."""
    if part is None:
        return
    yield part
    for name in ("normalizers", "pretokenizers", "processors"):
        for each in part.get(name) or []:
            yield from _parts(each)
