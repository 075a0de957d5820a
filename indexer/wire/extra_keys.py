"""Extra keys of an event's blocks, and the tokens behind them that their hashes take in: decoded and folded, those of many blocks in steps."""

from typing import Any

from msgspec import Raw

from indexer.compiled import core
from indexer.core.block_keys import TOKEN_BYTES, fold_extra_keys, pack_tokens, read_extra_keys
from indexer.core.event_pieces import Steps
from indexer.errors import Refused
from indexer.wire.large import split_array
from indexer.wire.outline import ARRAY_HEADER_BYTES_MAX, array_header
from indexer.wire.types import UNREADABLE, decode_raw_list, decode_token_lists, read_anything

NIL = b"\xc0"
# The encodings of "no block has extra keys": nil, an empty array, or an array of one nil.
NO_EXTRA_KEYS = (b"\x91\xc0", NIL, b"\x90")
# The most tokens behind a block that its hash may take in, and what they take encoded.
LOOKAHEAD_MAX = 16
LOOKAHEAD_BYTES_MAX = 5 * LOOKAHEAD_MAX + 3
# So many bytes of extra keys are folded in one step: a byte takes up to 150 ns, and each block's as much as so many bytes besides.
STEP_EXTRA_KEYS_BYTES_MAX = 65_536
ENTRY_BYTES = 16
# So many entries are looked at in one step, and so many lists of tokens are decoded.
STEP_ENTRIES = 8_192
STEP_LISTS = 2_048


def fold(
    encoded: bytes | Raw, blocks: int, lora_name: str | None, salt: str | None, *, first_of_prompt: bool, entry_bytes_max: int, bytes_max: int
) -> Steps[dict[int, bytes]]:
    """The folded extra keys of an event's blocks, by position. `entry_bytes_max`, `bytes_max`: how long those of a block may be, and all of them.

    Raises Refused.
    """
    entries = yield from _entries(encoded, blocks, entry_bytes_max)
    if entries and len(encoded) > bytes_max:
        raise Refused("batch_limit")
    folded: dict[int, bytes] = {}
    bytes_left = STEP_EXTRA_KEYS_BYTES_MAX
    for position, entry in entries:
        bytes_left -= len(entry) + ENTRY_BYTES
        if bytes_left < 0:
            yield
            bytes_left = STEP_EXTRA_KEYS_BYTES_MAX - len(entry) - ENTRY_BYTES
        extra = _folded_entry(entry, lora_name, salt, is_first=first_of_prompt and position == 0)
        if len(extra) > entry_bytes_max:
            raise Refused("event_limit")
        if extra:
            folded[position] = extra
    return folded


def read_lookahead(encoded: Raw, blocks: int) -> Steps[list[bytes]]:
    """The tokens behind each block that its hash takes in, packed: of all the same number. Raises Refused."""
    if len(encoded) > LOOKAHEAD_BYTES_MAX * (blocks + 1):
        raise Refused("lookahead")
    tokens: list[bytes] = []
    try:
        if core is None or len(encoded) <= STEP_EXTRA_KEYS_BYTES_MAX:
            tokens += map(pack_tokens, decode_token_lists(encoded))
        else:
            ends = yield from split_array(encoded)
            for first in range(0, len(ends) - 1, STEP_LISTS):
                lists = ends[first : first + STEP_LISTS + 1]
                header = b"\xdd" + (len(lists) - 1).to_bytes(4, "big")
                tokens += map(pack_tokens, decode_token_lists(header + memoryview(encoded)[lists[0] : lists[-1]].tobytes()))
                yield
    except (*UNREADABLE, ValueError):
        raise Refused("lookahead") from None
    lengths = {len(ahead) // TOKEN_BYTES for ahead in tokens}
    if not blocks or len(tokens) != blocks or len(lengths) != 1 or not 0 < max(lengths) <= LOOKAHEAD_MAX:
        raise Refused("lookahead")
    return tokens


def plain_extra_keys(entry: bytes, lora_name: str | None, is_first: bool) -> bytes | None:
    """The folded extra keys of one block, None where the entry cannot be used. `is_first`: of a prompt."""
    try:
        return _folded_entry(entry, lora_name, None, is_first=is_first)
    except (Refused, RecursionError):
        return None


def _entries(encoded: bytes | Raw, blocks: int, entry_bytes_max: int) -> Steps[list[tuple[int, bytes | Raw]]]:
    """Blocks' positions in an event with their extra keys, still encoded; those without any are left out. Raises Refused."""
    header = array_header(memoryview(encoded)[:ARRAY_HEADER_BYTES_MAX].tobytes())
    if header is None:
        raise Refused("event_malformed")
    count, header_bytes = header
    if count > blocks:
        raise Refused("extra_keys")
    if core is None or len(encoded) <= STEP_EXTRA_KEYS_BYTES_MAX:
        if len(bytes(encoded).rstrip(NIL)) <= header_bytes:
            return []  # they are all nil
        all_entries = decode_raw_list(encoded)
        if max(map(len, all_entries)) > entry_bytes_max:
            raise Refused("event_limit")
        return [(position, entry) for position, entry in enumerate(all_entries) if bytes(entry) != NIL]
    try:
        ends = yield from split_array(encoded)
    except ValueError:
        raise Refused("event_malformed") from None
    whole = bytes(encoded)
    entries: list[tuple[int, bytes | Raw]] = []
    for position in range(count):
        if position % STEP_ENTRIES == STEP_ENTRIES - 1:
            yield
        begin, end = ends[position : position + 2]
        if end - begin > entry_bytes_max:
            raise Refused("event_limit")
        if end - begin > 1 or whole[begin:end] != NIL:
            entries.append((position, whole[begin:end]))
    return entries


def _folded_entry(entry: bytes | Raw, lora_name: str | None, salt: str | None, *, is_first: bool) -> bytes:
    """The folded extra keys of one block. `salt`: of the event, which counts for the first block of a prompt. Raises Refused."""
    own_and_salt = read_anything(entry)
    if not isinstance(own_and_salt, list):
        raise Refused("extra_keys")
    own, announced_salt = read_extra_keys(own_and_salt, lora_name, first=is_first)
    return _folded(own, (salt or announced_salt) if is_first else None)


def _folded(own: list[Any], salt: str | None) -> bytes:
    try:
        return fold_extra_keys(own, salt)
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise Refused("extra_keys") from None
