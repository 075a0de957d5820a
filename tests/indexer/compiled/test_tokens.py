"""Lists of tokens that the compiled core reads are those that msgspec reads; what it does not read is left to msgspec."""

import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.core.block_keys import pack_tokens

core = pytest.importorskip("indexer.compiled._core")

TOKENS = st.lists(st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 300), st.sampled_from([2**32 - 1, 99_999_999, 100_000_000])), max_size=60)
SPACE = st.text(" \n\t\r", max_size=3)
VALUES = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=6)), st.lists, max_leaves=8)


def expected(decode: Any, encoded: bytes) -> bytes | None:
    """The tokens, packed, as Python reads them; None where one of them, or the whole list, is anything else."""
    try:
        return pack_tokens(decode(encoded, type=list[int]))
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError):
        return None


# JSON


@given(TOKENS, SPACE, SPACE)
def test_a_list_in_json_is_packed(tokens: list[int], before: str, after: str) -> None:
    text = f"{before}[{before}{f'{after},{before}'.join(map(str, tokens))}{after}]{after}"
    assert core.pack_json_tokens(text.encode()) == pack_tokens(tokens)
    assert core.pack_json_tokens(memoryview(text.encode())) == pack_tokens(tokens)


@given(st.lists(VALUES, max_size=8))
def test_a_list_of_anything_in_json_is_packed_only_if_it_is_one_of_tokens(values: list[Any]) -> None:
    encoded = json.dumps(values).encode()
    found = core.pack_json_tokens(encoded)
    assert found is None or found == expected(msgspec.json.decode, encoded)
    if all(type(value) is int and 0 <= value < 2**32 for value in values):
        assert found is not None


@given(st.text('0123456789,[] -.e"', max_size=40), st.booleans())
def test_what_is_nearly_a_list_is_never_read_otherwise_than_by_msgspec(text: str, opened: bool) -> None:
    encoded = (f"[{text}]" if opened else text).encode()
    found = core.pack_json_tokens(encoded)
    assert found is None or found == expected(msgspec.json.decode, encoded)


@pytest.mark.parametrize("between", [",", ", ", ",  ", ",\n"])
def test_a_long_list_with_a_byte_changed_is_read_as_by_msgspec(between: str) -> None:
    """Whichever of the pieces that are read at once it is in, and whatever lies at their ends."""
    rng = random.Random(between)
    for _ in range(2_000):
        digits = rng.choice([1, 3, 6, 8, 10])
        tokens = [rng.randrange(min(2**32, 10**digits)) for _ in range(rng.choice([30, 50]))]
        encoded = bytearray(f"[{between.join(map(str, tokens))}]".encode())
        assert core.pack_json_tokens(encoded) == pack_tokens(tokens)
        encoded[rng.randrange(len(encoded))] = rng.choice(b" ,,01239[]x.")
        assert core.pack_json_tokens(encoded) == expected(msgspec.json.decode, bytes(encoded))


@pytest.mark.parametrize(
    "text",
    [
        *["", " ", "[", "]", "[1", "[1,", "[1,]", "[,1]", "[01]", "[-1]", "[1.0]", "[1e3]", "[4294967296]", "[99999999999]", "[00000000001]"],
        *["[1 2]", "[1]x", "[[1]]", '["1"]', "[true]", "[null]", "{}", "1", "[123456789012345678901234567890]", "[1]]", "[\x00]", "[1\x0b]"],
        "[12345678x]",
    ],
)
def test_what_is_no_list_of_tokens_in_json_is_left(text: str) -> None:
    assert core.pack_json_tokens(text.encode()) is None


BODIES = st.dictionaries(st.sampled_from(["model", "token_ids", "prompt", "x\\y", 'quo"te', "é", "token"]), st.one_of(VALUES, TOKENS), max_size=5)


@given(BODIES, st.sampled_from([None, 1]))
def test_tokens_are_taken_out_of_an_object(body: dict[str, Any], indent: int | None) -> None:
    encoded = json.dumps(body, indent=indent, ensure_ascii=False).encode()
    found = core.take_json_tokens(encoded, b"token_ids")
    if found is None:
        return
    tokens, first, end = found
    assert list(memoryview(tokens).cast("I")) == body["token_ids"]
    assert json.loads(encoded[:first] + b"[]" + encoded[end:]) == {**body, "token_ids": []}


@given(BODIES, st.integers(0, 200), st.integers(0, 255))
def test_a_changed_byte_is_never_read_otherwise_than_by_msgspec(body: dict[str, Any], at: int, byte: int) -> None:
    encoded = bytearray(json.dumps({**body, "token_ids": [1, 22, 333]}).encode())
    encoded[at % len(encoded)] = byte
    found = core.take_json_tokens(bytes(encoded), b"token_ids")
    if found is None:
        return
    tokens, first, end = found
    try:
        rest = msgspec.json.decode(bytes(encoded[:first] + b"[]" + encoded[end:]))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return  # then all of the body is decoded
    assert rest["token_ids"] == []
    assert msgspec.json.decode(bytes(encoded)) == {**rest, "token_ids": list(memoryview(tokens).cast("I"))}


@pytest.mark.parametrize(
    "body",
    [
        b'{"token_ids": [1, 2]}',
        b'{"a": {"token_ids": [7]}, "b": [{"token_ids": [8]}], "token_ids" : [1,2] }',
        b'{"a": "\\"token_ids\\": [9]", "token_ids":[1,2], "b": "]"}',
        b'{"token_ids":[1,2],"messages":[{"role":"user","content":"[\\\\"}]}',
        b'{"a":"token_ids","token_ids":[1,2]}',
    ],
)
def test_the_objects_own_list_is_found(body: bytes) -> None:
    assert core.take_json_tokens(body, b"token_ids")[0] == pack_tokens([1, 2])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'"',
        b'"token_ids":[1]',
        b'{"token_ids',
        b'{"token_ids"',
        b'{"token_ids":',
        b'{"token_ids":[',
        b'{"token_ids":[1',
        b'{"token_ids":null}',
        b'{"token_ids":"[1]"}',
        b'{"token_ids":{"a":[1]}}',
        b'{"token_ids":[1],"token_ids":[2]}',
        b'{"token_ids":[1],"token\\u005fids":[2]}',
        b'{"token\\u005fids":[2],"token_ids":[1]}',
        b'{"token_ids":[1],"token_ids":null}',
        b'{"a":{"token_ids":[1]}}',
        b'{"token_ids":[[1]]}',
        b'{"token_ids":[1],"a":"unclosed\\"}',
    ],
)
def test_a_list_that_is_not_plainly_there_is_left(body: bytes) -> None:
    assert core.take_json_tokens(body, b"token_ids") is None


# msgpack


def in_msgpack(tokens: list[int], rng: random.Random, *, wide: bool) -> bytes:
    """The shortest encoding of each token, or one of any width that has room for it."""
    if not wide:
        return msgspec.msgpack.encode(tokens)
    header = b"\xdd" + len(tokens).to_bytes(4, "big")
    return header + b"".join(rng.choice(widths_of(token)) for token in tokens)


def widths_of(token: int) -> list[bytes]:
    found = [bytes([token])] if token < 128 else []
    sized = ((0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8))
    return found + [bytes([code]) + token.to_bytes(width, "big") for code, width in sized if token < 256**width]


@given(TOKENS, st.integers(0, 99), st.booleans())
def test_an_array_in_msgpack_is_packed(tokens: list[int], seed: int, wide: bool) -> None:
    encoded = in_msgpack(tokens, random.Random(seed), wide=wide)
    assert core.pack_msgpack_tokens(encoded) == pack_tokens(tokens)
    assert core.pack_msgpack_tokens(msgspec.Raw(encoded)) == pack_tokens(tokens)


@given(st.one_of(st.binary(max_size=40), TOKENS.map(msgspec.msgpack.encode)), st.binary(max_size=2), st.integers(0, 60))
def test_any_bytes_are_read_as_msgspec_reads_them_or_left(encoded: bytes, more: bytes, cut: int) -> None:
    for given_ in (encoded, encoded + more, encoded[:cut], b"\x93" + encoded):
        found = core.pack_msgpack_tokens(given_)
        assert found is None or found == expected(msgspec.msgpack.decode, given_)


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\x91",
        b"\x90\x00",
        b"\xdc",
        b"\xdc\x00",
        b"\xdd\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff\x01\x02",
        b"\xdd\x80\x00\x00\x00\x01",
        b"\x91\xff",
        b"\x91\xd3" + b"\0" * 8,
        b"\x91\xcf\x00\x00\x00\x01\x00\x00\x00\x00",
        b"\x91\xce\x00\x00\x00",
        b"\x91\xcd\x00",
        b"\x91\xcc",
        b"\x91\xc0",
        b"\x91\xca\x00\x00\x00\x00",
        b"\x92\x01",
        b"\x91\x91\x01",
        b"\xc4\x01\x01",
    ],
)
def test_what_is_no_array_of_tokens_in_msgpack_is_left(encoded: bytes) -> None:
    assert core.pack_msgpack_tokens(encoded) is None


def test_what_is_no_bytes_is_refused() -> None:
    for read in (core.pack_json_tokens, core.pack_msgpack_tokens, lambda body: core.take_json_tokens(body, b"k")):
        for given_ in ("[1]", None, 1):
            with pytest.raises((TypeError, BufferError)):
                read(given_)


@given(BODIES, st.binary(max_size=3))
def test_tokens_are_taken_out_of_a_map(body: dict[str, Any], behind: bytes) -> None:
    try:
        encoded = msgspec.msgpack.encode(body)
    except OverflowError:  # msgpack has no integers of more than 64 bits
        return
    found = core.take_msgpack_tokens(encoded, b"token_ids")
    if behind:
        assert core.take_msgpack_tokens(encoded + behind, b"token_ids") is None
    tokens = body.get("token_ids")
    is_list = isinstance(tokens, list) and all(type(token) is int and 0 <= token < 2**32 for token in tokens)
    assert (found is not None) == (is_list and "é" not in body)
    if found is not None:
        assert list(memoryview(found[0]).cast("I")) == tokens
        assert msgspec.msgpack.decode(encoded[: found[1]] + b"\x90" + encoded[found[2] :]) == {**body, "token_ids": []}
        # Cut off anywhere it is none.
        assert all(core.take_msgpack_tokens(encoded[:end], b"token_ids") is None for end in range(len(encoded)))


def test_tokens_that_are_there_twice_are_left() -> None:
    field = msgspec.msgpack.encode("token_ids") + msgspec.msgpack.encode([1, 2])
    assert core.take_msgpack_tokens(b"\x81" + field, b"token_ids") is not None
    assert core.take_msgpack_tokens(b"\x82" + field + field, b"token_ids") is None


@given(st.binary(max_size=40))
def test_no_bytes_are_a_map_by_chance(content: bytes) -> None:
    for encoded in (content, b"\x81\xa1k" + content, b"\x82\xa1x" + content):
        found = core.take_msgpack_tokens(encoded, b"k")
        if found is not None:
            assert list(memoryview(found[0]).cast("I")) == msgspec.msgpack.decode(encoded[found[1] : found[2]])
