"""Known wire events, in whichever encoding they came, turned into the events of the core: one form of hashes, tiers and extra keys."""

from collections.abc import Iterable
from typing import Any

from msgspec import UNSET, Raw, Struct, UnsetType

from indexer.core.block_keys import fold_extra_keys, pack_tokens, read_extra_keys
from indexer.core.events import HASH_MASK, Cleared, Event, Removed, Stored, Tier
from indexer.errors import Refused
from indexer.limits import WireLimits
from indexer.wire.outline import array_header
from indexer.wire.types import (
    UNREADABLE,
    RemovedArray,
    RemovedMap,
    SaltMap,
    StoredArray,
    StoredMap,
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

# The engine's name for where a block lies, in upper case; no name means GPU, an unknown one a lower tier.
TIER_OF_MEDIUM = {
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
        self._is_counted = True

    def begin_batch(self, payload_bytes: int) -> None:
        """Start counting the contents of a batch of this encoded size."""
        limits = self._limits
        self._hashes_left, self._tokens_left = limits.hashes_per_batch_max, limits.tokens_per_batch_max
        self._extra_keys_bytes_left = EXTRA_KEYS_OF_A_BATCH * limits.extra_keys_bytes_max
        # A hash or a token takes at least a byte: a small payload cannot exceed the limits.
        self._is_counted = payload_bytes > min(self._hashes_left, self._tokens_left)

    def normalise(self, event: WireEvent) -> Event:
        """Raises Refused for an event that cannot be used or exceeds a limit."""
        if isinstance(event, (StoredMap, StoredArray)):
            return self._stored(event)
        if isinstance(event, (RemovedMap, RemovedArray)):
            if len(event.block_hashes) > self._limits.hashes_per_event_max:
                raise Refused("event_limit")
            if self._is_counted:
                self._spend(len(event.block_hashes), 0)
            return Removed(_hashes(event.block_hashes), _tier(event), event.group_idx)
        return Cleared()

    def _spend(self, hashes: int, tokens: int) -> None:
        """Raises Refused for an event beyond what a batch may hold."""
        self._hashes_left -= hashes
        self._tokens_left -= tokens
        if self._hashes_left < 0 or self._tokens_left < 0:
            raise Refused("batch_limit")

    def _stored(self, event: StoredArray | StoredMap) -> Stored:
        limits = self._limits
        if len(event.block_hashes) > limits.hashes_per_event_max or len(event.token_ids) > limits.tokens_per_event_max:
            raise Refused("event_limit")
        if self._is_counted:
            self._spend(len(event.block_hashes), len(event.token_ids))
        if not 0 <= event.block_size <= limits.block_size_max:
            raise Refused("block_size")
        parent = event.parent_block_hash
        group: int | UnsetType | None = event.group_idx
        if isinstance(event, StoredMap):
            lora_name, salt = event.lora_name, event.cache_salt
            # SGLang's maps have neither of the two; vLLM's always have the group, even where all extra keys are left out.
            announces_extra_keys = event.extra_keys is not UNSET or group is not UNSET
        else:
            lora_name, salt = _array_isolation(event.lora_name)
            announces_extra_keys = event.extra_keys is not UNSET
            if type(parent) is int and parent == 0:
                parent = None  # the llm-d simulator's encoding of "none"
                self.dialect.is_simulator = True
        if lora_name is None and event.lora_id is not None:
            lora_name = f"#{event.lora_id}"
        if (lora_name or salt) and max(len(lora_name or ""), len(salt or "")) > limits.text_length_max:
            raise Refused("event_limit")
        sparse_tokens = 0
        if event.token_ids and len(event.token_ids) != len(event.block_hashes) * event.block_size:
            size = event.block_size
            if not size or len(event.token_ids) < len(event.block_hashes) * size or len(event.token_ids) % size:
                raise Refused("unaligned")
            sparse_tokens = len(event.token_ids)
        try:
            is_wanted = not sparse_tokens or (event.kv_cache_spec_kind == STATE_KIND and event.block_hashes)
            packed = pack_tokens(event.token_ids) if is_wanted else b""
        except OverflowError:
            raise Refused("token_range") from None
        extra_keys = None if sparse_tokens else self._extra_keys(event, lora_name, salt, first_of_prompt=parent is None)
        lookahead = 0
        if isinstance(event, StoredMap) and not isinstance(event.lookahead_token_ids, UnsetType) and bytes(event.lookahead_token_ids) != NIL:
            lookahead, extra_keys = self._with_lookahead(event.lookahead_token_ids, extra_keys or {}, len(event.block_hashes))
        return Stored(
            hashes=_hashes(event.block_hashes),
            parent=None if parent is None else _hash(parent),
            tokens=b"" if sparse_tokens else packed,
            block_size=event.block_size,
            tier=_tier(event),
            lora_name=lora_name or None,
            extra_keys=extra_keys,
            announces_extra_keys=announces_extra_keys,
            group=None if isinstance(group, UnsetType) else group,
            kind=event.kv_cache_spec_kind,
            window=_window(event.kv_cache_spec_sliding_window),
            salt=salt,
            lookahead=lookahead,
            sparse_tokens=sparse_tokens,
            state_tokens=packed if sparse_tokens else b"",
            lists_extra_keys=not isinstance(event.extra_keys, UnsetType) and bytes(event.extra_keys) != NIL,
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

    def _extra_keys(
        self, event: StoredArray | StoredMap, lora_name: str | None, salt: str | None, *, first_of_prompt: bool
    ) -> dict[int, bytes] | None:
        encoded = NIL if isinstance(event.extra_keys, UnsetType) else bytes(event.extra_keys)
        entries = None if encoded in NO_EXTRA_KEYS else self._extra_key_entries(encoded, len(event.block_hashes))
        if not entries and not salt:
            return None
        folded: dict[int, bytes] = {}
        for position, entry in entries or ():
            own_and_salt = read_anything(entry)
            if not isinstance(own_and_salt, list):
                raise Refused("extra_keys")
            first = first_of_prompt and position == 0
            own, announced_salt = read_extra_keys(own_and_salt, lora_name, first=first)
            extra = _folded(own, (salt or announced_salt) if first else None)
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
        self._extra_keys_bytes_left -= len(encoded)
        if self._extra_keys_bytes_left < 0:
            raise Refused("batch_limit")
        return entries


def _folded(own: list[Any], salt: str | None) -> bytes:
    try:
        return fold_extra_keys(own, salt)
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise Refused("extra_keys") from None


def _window(encoded: Raw | UnsetType) -> int | None:
    """The length of a sliding window in tokens, None where there is none."""
    if isinstance(encoded, UnsetType) or len(encoded) > WINDOW_BYTES_MAX:
        return None
    window = read_anything(encoded)
    return window if type(window) is int and window > 0 else None


def _array_isolation(position_7: str | SaltMap | None) -> tuple[str | None, str | None]:
    """LoRA name and cache salt from the array position that vLLM and SGLang 0.5.18 use differently."""
    return (None, position_7.cache_salt) if isinstance(position_7, SaltMap) else (position_7, None)


def _tier(event: Any) -> Tier:
    locality = getattr(event, "locality", None)
    if locality is not None and locality.upper() == "REMOTE":
        return Tier.REMOTE
    if event.medium is None:
        return Tier.GPU
    tier = TIER_OF_MEDIUM.get(event.medium.upper())
    return Tier.OTHER if tier is None else tier


def _hashes(values: list[Any]) -> list[int]:
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
