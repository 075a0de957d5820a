"""Known wire events, in whichever encoding they came, turned into the events of the core: one form of hashes, tiers and extra keys."""

from collections.abc import Callable, Iterable
from typing import Any

from msgspec import UNSET, Raw, Struct, UnsetType

from indexer.compiled import core
from indexer.core.block_keys import TOKEN_BYTES, fold_extra_keys, pack_tokens, read_extra_keys
from indexer.core.event_pieces import Steps
from indexer.core.events import HASH_MASK, Cleared, Event, Removed, Stored, Tier
from indexer.errors import Refused
from indexer.limits import WireLimits
from indexer.wire.outline import array_header
from indexer.wire.types import (
    UNREADABLE,
    RemovedArray,
    RemovedArrayExact,
    RemovedMap,
    RemovedMapExact,
    SaltMap,
    StoredArray,
    StoredArrayEncoded,
    StoredArrayExact,
    StoredArrayOfAnything,
    StoredArrayOfPairs,
    StoredMap,
    StoredMapEncoded,
    StoredMapExact,
    StoredMapOfAnything,
    StoredMapOfPairs,
    WireEvent,
    decode_raw_list,
    decode_token_lists,
    read_anything,
)

NIL = b"\xc0"
# The encodings of "no block has extra keys": nil, an empty array, or an array of one nil.
NO_EXTRA_KEYS = (b"\x91\xc0", NIL, b"\x90")
# The most tokens behind a block that its hash may take in, and what they take encoded.
LOOKAHEAD_MAX = 16
LOOKAHEAD_BYTES_MAX = 5 * LOOKAHEAD_MAX + 3
# The kind of a group whose last hash ends with the tokens of its event.
STATE_KIND = "mamba"
# The longest encoding of an integer.
WINDOW_BYTES_MAX = 9
# Limit for a batch, as a multiple of the extra keys of one block.
EXTRA_KEYS_OF_A_BATCH = 128
# So many bytes of extra keys are folded in one step: a byte takes up to 150 ns.
STEP_EXTRA_KEYS_BYTES_MAX = 65_536

# The engine's name for where a block lies, in upper case; no name means GPU, an unknown one a lower tier.
TIER_OF_MEDIUM: dict[str | None, Tier] = {
    None: Tier.GPU,
    "GPU": Tier.GPU,
    "CPU": Tier.CPU,
    "CPU_PINNED": Tier.CPU,
    "DISK": Tier.DISK,
    "STORAGE": Tier.DISK,
    "FS": Tier.DISK,
    "OBJ": Tier.DISK,
}


class Dialect(Struct):
    """What is known of how an engine publishes. `is_simulator`: the llm-d simulator's encoding was seen; it counts its batches from 1."""

    is_simulator: bool = False


class Normaliser:
    """Normalises the events of one stream, and holds each batch to its limits. Call `begin_batch` before the events of a batch."""

    def __init__(self, limits: WireLimits) -> None:
        self._limits = limits
        self.dialect = Dialect()
        self._hashes_left = self._tokens_left = self._extra_keys_bytes_left = 0
        self._extra_keys_bytes_max = EXTRA_KEYS_OF_A_BATCH * limits.extra_keys_bytes_max
        # A hash, a token and a byte of extra keys take at least a byte: a smaller payload cannot exceed the limits.
        self._uncounted_bytes_max = min(limits.hashes_per_batch_max, limits.tokens_per_batch_max, self._extra_keys_bytes_max)
        self._is_counted = True
        self._folded_ahead: dict[tuple[bytes, str | None, str | None, bool], bytes] = {}
        """Encoded extra keys of a block, adapter, salt of the event and whether the block is a prompt's first one → folded extra keys."""
        # By exact type: isinstance of a Struct costs four times as much.
        self._normalise: dict[type, Callable[[Any], Event]] = {
            **dict.fromkeys((StoredMap, StoredMapExact, StoredMapEncoded, StoredMapOfPairs, StoredMapOfAnything), self._stored_map),
            **dict.fromkeys((StoredArray, StoredArrayExact, StoredArrayEncoded, StoredArrayOfPairs, StoredArrayOfAnything), self._stored_array),
            **dict.fromkeys((RemovedMap, RemovedMapExact, RemovedArray, RemovedArrayExact), self._removed),
        }

    def begin_batch(self, payload_bytes: int) -> None:
        """Start counting the contents of a batch of this encoded size."""
        self._is_counted = payload_bytes > self._uncounted_bytes_max
        if self._is_counted:
            self._hashes_left, self._tokens_left = self._limits.hashes_per_batch_max, self._limits.tokens_per_batch_max
            self._extra_keys_bytes_left = self._extra_keys_bytes_max

    def fold_ahead(self, event: WireEvent) -> Steps[None]:
        """The steps that fold the extra keys of an event that has many: `normalise` finds them then. What cannot be used is left to it."""
        self._folded_ahead.clear()
        if not isinstance(event, StoredArray | StoredMap) or event.extra_keys is UNSET or len(event.extra_keys) <= STEP_EXTRA_KEYS_BYTES_MAX:
            return
        if self._is_counted and len(event.extra_keys) > self._extra_keys_bytes_left:
            return
        if isinstance(event, StoredMap):
            lora_name, salt, first_of_prompt = event.lora_name, event.cache_salt, event.parent_block_hash is None
        else:
            (lora_name, salt), first_of_prompt = _array_isolation(event.lora_name), event.parent_block_hash in (None, 0)
        if lora_name is None and event.lora_id is not None:
            lora_name = f"#{event.lora_id}"
        bytes_left = STEP_EXTRA_KEYS_BYTES_MAX
        try:
            for position, entry in self._extra_key_entries(bytes(event.extra_keys), len(event.block_hashes)):
                bytes_left -= len(entry)
                if bytes_left < 0:
                    yield
                    bytes_left = STEP_EXTRA_KEYS_BYTES_MAX - len(entry)
                is_first = first_of_prompt and position == 0
                self._folded_ahead[bytes(entry), lora_name, salt, is_first] = _folded_entry(entry, lora_name, salt, is_first=is_first)
        except (Refused, RecursionError):
            return

    def forget_folded(self) -> None:
        """What was folded ahead is not needed any more."""
        self._folded_ahead.clear()

    def normalise(self, event: WireEvent) -> Event:
        """Raises Refused for an event that cannot be used or exceeds a limit."""
        normalise = self._normalise.get(type(event))
        return Cleared() if normalise is None else normalise(event)

    def _spend(self, hashes: int, tokens: int) -> None:
        """Raises Refused for an event beyond what a batch may hold."""
        self._hashes_left -= hashes
        self._tokens_left -= tokens
        if self._hashes_left < 0 or self._tokens_left < 0:
            raise Refused("batch_limit")

    def _removed(self, event: RemovedArray | RemovedMap) -> Removed:
        if len(event.block_hashes) > self._limits.hashes_per_event_max:
            raise Refused("event_limit")
        if self._is_counted:
            self._spend(len(event.block_hashes), 0)
        return Removed(_hashes(event.block_hashes), _tier(event.medium, getattr(event, "locality", None)), event.group_idx)

    def _stored_map(self, event: StoredMap) -> Stored:
        group: int | UnsetType | None = event.group_idx
        # SGLang's maps have neither of the two; vLLM's always have the group, even where all extra keys are left out.
        announces_extra_keys = event.extra_keys is not UNSET or group is not UNSET
        if group is UNSET:
            group = None
        tier = _tier(event.medium, event.locality)
        return self._stored(
            event, event.parent_block_hash, tier, event.lora_name, event.cache_salt, announces_extra_keys, group, event.lookahead_token_ids
        )

    def _stored_array(self, event: StoredArray) -> Stored:
        parent = event.parent_block_hash
        is_simulator = type(parent) is int and parent == 0
        if is_simulator:
            parent = None  # the llm-d simulator's encoding of "none"
        lora_name, salt = _array_isolation(event.lora_name)
        tier, announces_extra_keys = _tier(event.medium, None), event.extra_keys is not UNSET
        stored = self._stored(event, parent, tier, lora_name, salt, announces_extra_keys, event.group_idx, UNSET)
        if is_simulator:  # an event that is refused says nothing
            self.dialect.is_simulator = True
        return stored

    def _stored(
        self,
        event: StoredArray | StoredMap,
        parent: int | bytes | None,
        tier: Tier,
        lora_name: str | None,
        salt: str | None,
        announces_extra_keys: bool,
        group: int | None,
        lookahead_token_ids: Raw | UnsetType,
    ) -> Stored:
        limits, hashes, block_size = self._limits, event.block_hashes, event.block_size
        given: Any = event.token_ids
        token_ids: list[int] | bytes = _packed(given) if type(given) is Raw else given
        token_count = len(token_ids) // TOKEN_BYTES if type(token_ids) is bytes else len(token_ids)
        if len(hashes) > limits.hashes_per_event_max or token_count > limits.tokens_per_event_max:
            raise Refused("event_limit")
        if self._is_counted:
            self._spend(len(hashes), token_count)
        if not 0 <= block_size <= limits.block_size_max:
            raise Refused("block_size")
        if lora_name is None and event.lora_id is not None:
            lora_name = f"#{event.lora_id}"
        if (lora_name or salt) and max(len(lora_name or ""), len(salt or "")) > limits.text_length_max:
            raise Refused("event_limit")
        sparse_tokens = _sparse_tokens(token_count, len(hashes), block_size) if token_count != len(hashes) * block_size else 0
        tokens = b""
        if not sparse_tokens or (event.kv_cache_spec_kind == STATE_KIND and hashes):
            try:
                tokens = token_ids if isinstance(token_ids, bytes) else pack_tokens(token_ids)
            except OverflowError:
                raise Refused("token_range") from None
        encoded = NIL if event.extra_keys is UNSET else bytes(event.extra_keys)
        extra_keys = None
        if (salt or encoded not in NO_EXTRA_KEYS) and not sparse_tokens:
            extra_keys = self._extra_keys(encoded, len(hashes), lora_name, salt, first_of_prompt=parent is None)
        lookahead = 0
        if lookahead_token_ids is not UNSET and bytes(lookahead_token_ids) != NIL:
            lookahead, extra_keys = self._with_lookahead(lookahead_token_ids, extra_keys or {}, len(hashes))
        # By position: so many keywords cost five times as much.
        return Stored(
            _hashes(hashes),
            parent if parent is None or (type(parent) is int and parent >= 0) else _hash(parent),
            b"" if sparse_tokens else tokens,
            block_size,
            tier,
            lora_name or None,
            extra_keys,
            announces_extra_keys,
            group,
            event.kv_cache_spec_kind,
            None if event.kv_cache_spec_sliding_window is UNSET else _window(event.kv_cache_spec_sliding_window),
            sparse_tokens,
            tokens if sparse_tokens else b"",
            encoded != NIL,
            salt,
            lookahead,
        )

    def _with_lookahead(self, encoded: Raw, extra_keys: dict[int, bytes], blocks: int) -> tuple[int, dict[int, bytes]]:
        """How many tokens behind each block its hash takes in, and the extra keys with these in front. Raises Refused."""
        if len(encoded) > LOOKAHEAD_BYTES_MAX * (blocks + 1):
            raise Refused("lookahead")
        try:
            tokens = decode_token_lists(encoded)
        except UNREADABLE:
            raise Refused("lookahead") from None
        lengths = {len(ahead) for ahead in tokens}
        if not blocks or len(tokens) != blocks or len(lengths) != 1 or not 0 < max(lengths) <= LOOKAHEAD_MAX:
            raise Refused("lookahead")
        return max(lengths), {position: pack_tokens(ahead) + extra_keys.get(position, b"") for position, ahead in enumerate(tokens)}

    def _extra_keys(self, encoded: bytes, blocks: int, lora_name: str | None, salt: str | None, *, first_of_prompt: bool) -> dict[int, bytes] | None:
        """Blocks' positions in an event with their folded extra keys; None where there are none. Raises Refused."""
        entries = None if encoded in NO_EXTRA_KEYS else self._extra_key_entries(encoded, blocks)
        if not entries and not salt:
            return None
        folded: dict[int, bytes] = {}
        if entries and self._is_counted:
            self._extra_keys_bytes_left -= len(encoded)
            if self._extra_keys_bytes_left < 0:
                raise Refused("batch_limit")
        for position, entry in entries or ():
            is_first = first_of_prompt and position == 0
            extra = self._folded_ahead.get((bytes(entry), lora_name, salt, is_first)) if self._folded_ahead else None
            if extra is None:
                extra = _folded_entry(entry, lora_name, salt, is_first=is_first)
            if len(extra) > self._limits.extra_keys_bytes_max:
                raise Refused("event_limit")
            if extra:
                folded[position] = extra
        if salt and first_of_prompt and 0 not in folded:
            folded[0] = fold_extra_keys([], salt)
        return folded or None

    def _extra_key_entries(self, encoded: bytes, blocks: int) -> Iterable[tuple[int, Raw]]:
        """Blocks' positions in an event with their entries, still encoded; those without any are left out. Raises Refused."""
        header = array_header(encoded)
        if header is None:
            raise Refused("event_malformed")
        count, header_bytes = header
        if count > blocks:
            raise Refused("extra_keys")
        if len(encoded.rstrip(NIL)) <= header_bytes:
            return ()  # they are all nil
        entries = [(position, entry) for position, entry in enumerate(decode_raw_list(encoded)) if bytes(entry) != NIL]
        if max(len(entry) for _, entry in entries) > self._limits.extra_keys_bytes_max:
            raise Refused("event_limit")
        return entries


def plain_stored(
    hashes: list[int],
    parent: int | None,
    tokens: bytes,
    said: tuple[Any, ...],
    announces_extra_keys: bool,
    lists_extra_keys: bool,
    lora_name: str | None,
    extra_keys: dict[int, bytes] | None,
) -> Stored:
    """An event of `PlainEvents`."""
    group, kind, window, block_size, _lookahead = said
    told = (block_size, Tier.GPU, lora_name, extra_keys, announces_extra_keys, group, kind, window)
    return Stored(hashes, parent, tokens, *told, lists_extra_keys=lists_extra_keys)


def plain_extra_keys(entry: bytes, lora_name: str | None, is_first: bool) -> bytes | None:
    """The folded extra keys of one block, None where the entry cannot be used. `is_first`: of a prompt."""
    try:
        return _folded_entry(entry, lora_name, None, is_first=is_first)
    except (Refused, RecursionError):
        return None


def plain_removed(hashes: list[int], group: int | None) -> Removed:
    """The same of removed blocks."""
    return Removed(hashes, Tier.GPU, group)


def _packed(encoded: Raw) -> bytes:
    """Encoded tokens, packed. Raises Refused for anything but tokens: decoding the batch without the compiled core says what it is."""
    tokens = None if core is None else core.pack_msgpack_tokens(encoded)
    if tokens is None:
        raise Refused("token_type")
    return tokens


def _sparse_tokens(tokens: int, hashes: int, size: int) -> int:
    """How many tokens an event has whose hashes are fewer than their blocks; 0 without tokens. Raises Refused where they fit no blocks."""
    if tokens and (not size or tokens < hashes * size or tokens % size):
        raise Refused("unaligned")
    return tokens


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


def _window(encoded: Raw) -> int | None:
    """The length of a sliding window in tokens, None where there is none."""
    window = read_anything(encoded) if len(encoded) <= WINDOW_BYTES_MAX else None
    return window if type(window) is int and window > 0 else None


def _array_isolation(position_7: str | SaltMap | None) -> tuple[str | None, str | None]:
    """LoRA name and cache salt from the array position that vLLM and SGLang 0.5.18 use differently."""
    return (None, position_7.cache_salt) if isinstance(position_7, SaltMap) else (position_7, None)


def _tier(medium: str | None, locality: str | None) -> Tier:
    if locality is not None and locality.upper() == "REMOTE":
        return Tier.REMOTE
    tier = TIER_OF_MEDIUM.get(medium)  # nearly always in upper case, or none
    return TIER_OF_MEDIUM.get((medium or "").upper(), Tier.OTHER) if tier is None else tier


def _hashes(values: list[Any]) -> list[int]:
    if len(values) == 1 and type(values[0]) is int and values[0] >= 0:
        return values  # what an engine announces while it generates
    try:
        if not values or min(values) >= 0:
            return values
        return [value & HASH_MASK for value in values]
    except TypeError:
        return [_hash(value) for value in values]


def _hash(value: int | bytes) -> int:
    """An engine hash as an unsigned 64-bit integer: the low 64 bits, or the last 8 bytes."""
    if isinstance(value, int):
        return value & HASH_MASK
    if len(value) < 8:
        raise Refused("hash_length")
    return int.from_bytes(value[-8:], "big")
