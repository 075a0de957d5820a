"""Known wire events, in whichever encoding they came, turned into the events of the core: one form of hashes, tiers and extra keys."""

from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import UNSET, Raw, Struct, UnsetType

from indexer.compiled import core
from indexer.core.block_keys import TOKEN_BYTES, fold_extra_keys, pack_tokens
from indexer.core.event_pieces import Steps, result_of
from indexer.core.events import HASH_MASK, Cleared, Event, Removed, Stored, Tier
from indexer.errors import Refused
from indexer.limits import WireLimits
from indexer.wire.extra_keys import NIL, NO_EXTRA_KEYS, STEP_EXTRA_KEYS_BYTES_MAX, fold, read_lookahead
from indexer.wire.types import (
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
    read_anything,
)

T = TypeVar("T")

# The kind of a group whose last hash ends with the tokens of its event.
STATE_KIND = "mamba"
# The longest encoding of an integer.
WINDOW_BYTES_MAX = 9
# Limit for a batch, as a multiple of the extra keys of one block.
EXTRA_KEYS_OF_A_BATCH = 128

# In one step so many hashes are read.
STEP_HASHES_MAX = 8_192

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


class Prepared(Struct):
    """What is known of a large event before it is normalised; in place of each what was raised for it."""

    extra_keys: dict[int, bytes] | Exception | None = None
    lookahead: list[bytes] | Exception | None = None


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
        self._prepared: Prepared | None = None
        """Of the event that `normalise` is asked for next."""
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

    def prepare(self, event: WireEvent) -> Steps[None]:
        """The steps of what takes long of a large event: `normalise` finds it done."""
        self._prepared = None
        if isinstance(event, StoredArray | StoredMap | RemovedArray | RemovedMap) and len(event.block_hashes) > STEP_HASHES_MAX:
            event.block_hashes = yield from _hashes_in_steps(event.block_hashes)
        if not isinstance(event, StoredArray | StoredMap):
            return
        blocks, extra_keys = len(event.block_hashes), event.extra_keys
        if isinstance(event, StoredMap):
            lora_name, salt, first_of_prompt, ahead = event.lora_name, event.cache_salt, event.parent_block_hash is None, event.lookahead_token_ids
        else:
            (lora_name, salt), first_of_prompt, ahead = _array_isolation(event.lora_name), event.parent_block_hash in (None, 0), UNSET
        if lora_name is None and event.lora_id is not None:
            lora_name = f"#{event.lora_id}"
        prepared = Prepared()
        if extra_keys is not UNSET and len(extra_keys) > STEP_EXTRA_KEYS_BYTES_MAX:
            prepared.extra_keys = yield from _outcome_of(self._fold(extra_keys, blocks, lora_name, salt, first_of_prompt=first_of_prompt))
        if ahead is not UNSET and len(ahead) > STEP_EXTRA_KEYS_BYTES_MAX:
            prepared.lookahead = yield from _outcome_of(read_lookahead(ahead, blocks))
        self._prepared = prepared

    def forget_prepared(self) -> None:
        """What was prepared is not needed any more."""
        self._prepared = None

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
            ahead = self._take(lambda prepared: prepared.lookahead, lambda: read_lookahead(lookahead_token_ids, len(hashes)))
            lookahead = len(ahead[0]) // TOKEN_BYTES
            own = extra_keys or {}
            extra_keys = {position: tokens + own.get(position, b"") for position, tokens in enumerate(ahead)}
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

    def _take(self, prepared: Callable[[Prepared], T | Exception | None], make: Callable[[], Steps[T]]) -> T:
        """What was prepared of the event, or is made now. Raises what making it raised."""
        found = None if self._prepared is None else prepared(self._prepared)
        if found is None:
            return result_of(make())
        if isinstance(found, Exception):
            raise found
        return found

    def _extra_keys(self, encoded: bytes, blocks: int, lora_name: str | None, salt: str | None, *, first_of_prompt: bool) -> dict[int, bytes] | None:
        """Blocks' positions in an event with their folded extra keys; None where there are none. Raises Refused."""
        folded: dict[int, bytes] = {}
        if encoded not in NO_EXTRA_KEYS:
            folded = self._take(
                lambda prepared: prepared.extra_keys,
                lambda: self._fold(encoded, blocks, lora_name, salt, first_of_prompt=first_of_prompt),
            )
            if self._is_counted:
                self._extra_keys_bytes_left -= len(encoded)
        if salt and first_of_prompt and 0 not in folded:
            folded[0] = fold_extra_keys([], salt)
        return folded or None

    def _fold(self, encoded: bytes | Raw, blocks: int, lora_name: str | None, salt: str | None, *, first_of_prompt: bool) -> Steps[dict[int, bytes]]:
        entry_bytes_max, bytes_max = self._limits.extra_keys_bytes_max, self._extra_keys_bytes_left if self._is_counted else len(encoded)
        return fold(encoded, blocks, lora_name, salt, first_of_prompt=first_of_prompt, entry_bytes_max=entry_bytes_max, bytes_max=bytes_max)


def _outcome_of(steps: Steps[T]) -> Steps[T | Exception]:
    """What they result in, or what they raise where an event cannot be used."""
    try:
        return (yield from steps)
    except (Refused, RecursionError) as error:
        return error


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


def _hashes_in_steps(values: list[Any]) -> Steps[list[Any]]:
    """The same of many; where one cannot be used these values as they are."""
    found: list[int] = []
    try:
        for first in range(0, len(values), STEP_HASHES_MAX):
            found += _hashes(values[first : first + STEP_HASHES_MAX])
            yield
    except Refused:
        return values
    return found


def _hash(value: int | bytes) -> int:
    """An engine hash as an unsigned 64-bit integer: the low 64 bits, or the last 8 bytes."""
    if isinstance(value, int):
        return value & HASH_MASK
    if len(value) < 8:
        raise Refused("hash_length")
    return int.from_bytes(value[-8:], "big")
