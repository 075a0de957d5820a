"""Which blocks of LoRA adapters a stream holds, so that those of an adapter's former weights can be removed. Pure.

An adapter that is reloaded under its name has other weights: what was computed with the former ones does not count any more. Engines do not say so.
Some hash the weights' identity: then the first block of a prompt comes under another hash than the same block did before, and blocks that follow it
name that hash as their parent. Where the hash depends on the name alone, only the operator knows.
"""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

from indexer.core.block_keys import TOKEN_BYTES
from indexer.core.events import Cleared, Event, Events, Removed, Stored, Tier
from indexer.core.oldest import oldest_to_drop

CONTENT_BYTES = 16
# A step has so many hashes.
STEP_HASHES = 1_024

Place = tuple[Tier, int | None]
"""A tier, and a KV-cache group."""


class AdapterBlocks:
    """`copies_max`: as many copies as count of a block in one place.

    `adapter_of`: engine hash → its adapter; to read.
    """

    def __init__(self, copies_max: int, blocks_max: int = 2**40) -> None:
        """`blocks_max`: how many are known at most; beyond that the oldest are forgotten, as the stream drops what it holds for too long."""
        self._copies_max = copies_max
        self._blocks_max = blocks_max
        self.forget()

    def forget(self) -> None:
        """The stream holds nothing."""
        self.adapter_of: dict[int, str] = {}
        self._copies: dict[int, dict[Place, int]] = {}
        self._hashes: dict[str, set[int]] = {}
        self._first: dict[tuple[str, bytes], int] = {}
        self._content_of: dict[int, tuple[str, bytes]] = {}
        self._on_gpu: dict[int, None] = {}
        """The hashes that have copies there, in whichever group: clearing costs what was stored."""

    def follow(self, events: Events) -> Events:
        """The events of a batch, with removals where an adapter turns out to be reloaded."""
        if not self.adapter_of:
            if not isinstance(events, list):
                if not events.adapters:
                    return events
            elif not any(type(event) is Stored and event.lora_name is not None for event in events):
                return events
        return [event for event in self.follow_each(events) if event is not None]

    def follow_each(self, events: Iterable[Event]) -> Iterator[Event | None]:
        """The same one by one, as they are asked for; None after each of the steps that a large one takes."""
        return (followed for event in events for followed in self._follow(event))

    def remove(self, adapter: str, but: int | None = None) -> Iterator[Event]:
        """The removals of all that is held of an adapter. `but`: a hash that stays."""
        for engine_hash in self._hashes.pop(adapter, ()):
            if engine_hash == but:
                continue
            self._on_gpu.pop(engine_hash, None)
            for (tier, group), copies in self._copies.pop(engine_hash).items():
                for _ in range(copies):
                    yield Removed([engine_hash], tier, group)
            self._drop(engine_hash)
        if but in self.adapter_of:
            self._hashes[adapter] = {but}

    def _follow(self, event: Event) -> Iterator[Event | None]:
        hashes = () if isinstance(event, Cleared) else event.hashes
        pieces = (hashes[start : start + STEP_HASHES] for start in range(0, len(hashes), STEP_HASHES))
        match event:
            case Stored() if event.lora_name is not None:
                parent = self._parent_of(event, event.lora_name)
                if parent is not None and self._is_reloaded(parent):
                    yield from self.remove(event.lora_name, but=parent)
                for piece in pieces:
                    self._store(piece, event.lora_name, (event.tier, event.group))
                    yield None
            case Stored():
                for piece in pieces:
                    self._store_known(piece, (event.tier, event.group))
                    yield None
            case Removed():
                for piece in pieces:
                    for engine_hash in piece:
                        self._remove_copy(engine_hash, (event.tier, event.group))
                    yield None
            case Cleared():
                self._clear()
        yield event

    def _parent_of(self, event: Stored, adapter: str) -> int | None:
        """A hash that blocks of this event follow: that of its parent, or of its own first block if more follow."""
        if event.parent is not None:
            return event.parent
        # Without extra keys equal tokens may be those of another image or salt.
        if not event.tokens or not event.announces_extra_keys:
            return None
        content = blake2b(event.tokens[: event.block_size * TOKEN_BYTES], digest_size=CONTENT_BYTES)
        content.update((event.extra_keys or {}).get(0, b""))
        self._name(event.hashes[0], (adapter, content.digest()))
        return event.hashes[0] if len(event.hashes) > 1 else None

    def _is_reloaded(self, parent: int) -> bool:
        """Whether blocks followed a prompt's first block under another hash before. A hash that none follow may be a second one of the same block."""
        name = self._content_of.get(parent)
        if name is None:
            return False
        known = self._first.get(name, parent)
        self._first[name] = parent
        return known != parent

    def _store(self, hashes: Sequence[int], adapter: str, place: Place) -> None:
        held = self._hashes.get(adapter, set())
        for engine_hash in hashes:
            if self.adapter_of.setdefault(engine_hash, adapter) == adapter:
                held.add(engine_hash)
                self._add_copy(engine_hash, place)
        if held:
            self._hashes[adapter] = held
        for oldest in oldest_to_drop(self.adapter_of, self._blocks_max):
            self._copies[oldest].clear()
            self._drop_unless_held([oldest])

    def _store_known(self, hashes: Sequence[int], place: Place) -> None:
        """A copy in a lower tier may name the blocks of an adapter without the adapter."""
        for engine_hash in hashes:
            if engine_hash in self.adapter_of:
                self._add_copy(engine_hash, place)

    def _add_copy(self, engine_hash: int, place: Place) -> None:
        copies = self._copies.setdefault(engine_hash, {})
        copies[place] = min(self._copies_max, copies.get(place, 0) + 1)
        if place[0] is Tier.GPU:
            self._on_gpu[engine_hash] = None

    def _remove_copy(self, engine_hash: int, place: Place) -> None:
        copies = self._copies.get(engine_hash)
        if copies is None or place not in copies:
            return
        copies[place] -= 1
        if not copies[place]:
            del copies[place]
            self._drop_unless_held([engine_hash])

    def _clear(self) -> None:
        cleared, self._on_gpu = self._on_gpu, {}
        for engine_hash in cleared:
            copies = self._copies[engine_hash]
            for place in [place for place in copies if place[0] is Tier.GPU]:
                del copies[place]
        self._drop_unless_held(cleared)

    def _drop_unless_held(self, hashes: Iterable[int]) -> None:
        for engine_hash in hashes:
            if self._copies[engine_hash]:
                continue
            del self._copies[engine_hash]
            self._on_gpu.pop(engine_hash, None)
            adapter = self.adapter_of[engine_hash]
            self._hashes[adapter].discard(engine_hash)
            if not self._hashes[adapter]:
                del self._hashes[adapter]
            self._drop(engine_hash)

    def _drop(self, engine_hash: int) -> None:
        self.adapter_of.pop(engine_hash, None)
        self._name(engine_hash, None)

    def _name(self, engine_hash: int, content: tuple[str, bytes] | None) -> None:
        """It stands for this first block of a prompt and for no other, or for none."""
        former = self._content_of.pop(engine_hash, None)
        if content is not None:
            self._content_of[engine_hash] = content
        if former is not None and former != content and self._first.get(former) == engine_hash:
            del self._first[former]
