"""How engines encode what they say, release by release, written from docs/explanation/wire-format.md. It shares no code with the product."""

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import msgspec

Fields = dict[str, Any]
STORED = ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id")
STORED_MEDIUM = (*STORED, "medium")
STORED_EXTRA_KEYS = (*STORED_MEDIUM, "lora_name", "extra_keys")
STORED_GROUPS = (*STORED_EXTRA_KEYS, "group_idx", "kv_cache_spec_kind", "kv_cache_spec_sliding_window")
REMOVED = ("block_hashes", "medium", "group_idx")


class Dialect(NamedTuple):
    """What an engine of one kind does otherwise than others.

    `stored`, `removed`: the fields of its events in their order, none where they are maps. `first_number`: of its batches. `without`: what its
    workload never does. `is_plain`: it says nothing of what isolates content, so its texts have none of it. `has_groups`: it says which KV-cache
    group its events are of, so it may serve a hybrid model.
    """

    name: str
    stored: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    encode_hash: Callable[[int], int | bytes] = int
    root: int | None = None
    """What stands for "no parent"."""
    first_number: int = 0
    counts_copies: bool = True
    without: Collection[str] = ()
    is_plain: bool = False
    has_groups: bool = False
    with_topic: bool = True

    def payload(self, events: Sequence[Fields]) -> bytes:
        """One batch."""
        return msgspec.msgpack.encode([time.time(), [self._event(event) for event in events], 0])

    def _event(self, event: Fields) -> Any:
        shown = dict(event)
        if "block_hashes" in shown:
            shown["block_hashes"] = [self.encode_hash(number) for number in shown["block_hashes"]]
        if "parent_block_hash" in shown:
            parent = shown["parent_block_hash"]
            shown["parent_block_hash"] = self.root if parent is None else self.encode_hash(parent)
        if not self.stored:
            return shown
        names = {"BlockStored": self.stored, "BlockRemoved": self.removed}.get(shown["type"], ())
        return [shown["type"], *(shown.get(name) for name in names)]


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _digest(number: int) -> bytes:
    """32 bytes, as of sha256."""
    return number.to_bytes(8, "little") * 3 + number.to_bytes(8, "big")


NOT_TOLD = ("rename", "offload", "lower_evict")
DIALECTS = (
    Dialect("vLLM 0.26, maps", has_groups=True),
    Dialect("vLLM 0.26, arrays", STORED_GROUPS, REMOVED, has_groups=True),
    Dialect("vLLM 0.17, sha256", STORED_EXTRA_KEYS, REMOVED[:2], _digest, without=("offload", "lower_evict"), with_topic=False),
    Dialect("vLLM 0.9", STORED, REMOVED[:1], without=NOT_TOLD, is_plain=True),
    Dialect("SGLang", STORED_MEDIUM, REMOVED[:2], _signed, counts_copies=False, without=NOT_TOLD, is_plain=True),
    Dialect("llm-d simulator", STORED_MEDIUM, REMOVED[:2], root=0, first_number=1, without=NOT_TOLD, is_plain=True),
)


def dialect(name: str) -> Dialect:
    """The one with this name."""
    return next(known for known in DIALECTS if known.name == name)
