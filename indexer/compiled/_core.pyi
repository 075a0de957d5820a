"""Types of the compiled core. What each name does its twin in Python says."""

from collections.abc import Mapping

from typing_extensions import Buffer

def pack_json_tokens(encoded: Buffer) -> bytes | None: ...
def take_json_tokens(body: bytes, key: bytes) -> tuple[bytes, int, int] | None: ...
def pack_msgpack_tokens(encoded: Buffer) -> bytes | None: ...
def hash_bytes(data: bytes, seed: int = 0) -> int: ...
def chain_keys(
    parent: int,
    tokens: bytes,
    block_size: int,
    extra_keys: Mapping[int, bytes] | None = None,
    start: int = 0,
    stop: int | None = None,
    lookahead: int = 0,
) -> list[int]: ...
