"""What an engine says of its cache at the end of a response."""

import json

import pytest

from scorer_api.gateway.usage import TAIL_BYTES, Tail

USAGE = {"prompt_tokens": 40, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 32}}
WHOLE = json.dumps({"choices": [{"message": {"content": 'it said "cached_tokens": 9'}}], "usage": USAGE}).encode()
STREAMED = b'data: {"choices":[]}\n\ndata: {"usage":' + json.dumps(USAGE, separators=(",", ":")).encode() + b"}\n\ndata: [DONE]\n\n"


def read(*pieces: bytes) -> int | None:
    tail = Tail()
    for piece in pieces:
        tail.add(memoryview(piece))
    return tail.cached_tokens()


@pytest.mark.parametrize("body", [WHOLE, STREAMED])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_the_usage_is_found_however_the_body_is_cut(body: bytes, size: int) -> None:
    assert read(*(body[start : start + size] for start in range(0, len(body), size))) == 32


def test_it_is_found_behind_a_long_answer() -> None:
    assert read(b"x" * 100_000, WHOLE) == 32
    assert read(*[b"x" * 1_000] * 50, WHOLE) == 32
    assert read(b"x" * 100_000 + WHOLE) == 32


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"usage": {"prompt_tokens": 40}}',
        b'{"usage": {"prompt_tokens_details": null}}',
        json.dumps({"text": 'a model may write "cached_tokens": 7 too'}).encode(),
        WHOLE + b" " * 2 * TAIL_BYTES,
    ],
)
def test_what_is_not_told_is_unknown(body: bytes) -> None:
    assert read(body) is None
