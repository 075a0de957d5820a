"""The block keys that one stream holds, by group and tier, as the index should show them: ambiguous ones are held, but not shown."""

from collections.abc import Collection, Iterable

from indexer.core.change import Change
from indexer.core.events import Tier
from indexer.core.groups import LEAD
from indexer.core.held_keys import HeldKeys, make_held_keys
from indexer.core.key_claims import make_key_claims


class IndexedKeys:
    """`change`: where to note which keys become shown or hidden; the caller exchanges it for each batch. `held`: of the lead group."""

    def __init__(self) -> None:
        self.held: tuple[HeldKeys, ...] = tuple(make_held_keys() for _ in Tier)
        self.claims = make_key_claims()
        self.change = Change()
        self._held_in: dict[int, tuple[HeldKeys, ...]] = {LEAD: self.held}

    def count(self, tier: Tier, slot: int | None = None) -> int:
        """How many keys are shown in a tier: of the group in this slot, or of that which has most."""
        if slot is not None:
            return self._count(self._held_in[slot][tier].keys) if slot in self._held_in else 0
        if len(self._held_in) == 1:
            return self._count(self.held[tier].keys)
        return max(self._count(held[tier].keys) for held in self._held_in.values())

    def _count(self, held: Collection[int]) -> int:
        ambiguous = self.claims.ambiguous
        return len(held) - sum(key in held for key in ambiguous) if ambiguous else len(held)

    def shown(self, tier: Tier, slot: int = LEAD) -> set[int]:
        """The keys of a slot that are shown in a tier."""
        return set(self._held_in[slot][tier].keys) - self.claims.ambiguous if slot in self._held_in else set()

    def holds(self, slot: int) -> bool:
        """Whether a slot holds anything."""
        return slot in self._held_in and any(held.keys for held in self._held_in[slot])

    def is_on_gpu(self, key: int) -> bool:
        """Whether any group holds a key on the gpu."""
        return any(key in held[Tier.GPU].keys for held in self._held_in.values())

    def _held(self, slot: int) -> tuple[HeldKeys, ...]:
        held = self._held_in.get(slot)
        if held is None:
            held = self._held_in[slot] = tuple(make_held_keys() for _ in Tier)
        return held

    def hold(self, slot: int, tier: Tier, keys: Iterable[int]) -> None:
        """One more engine hash holds these keys. A key that another hash holds already is noted again: a reader that reads in pieces, while one hash
        takes the place of the other, may see neither."""
        held, touched = self._held(slot)[tier], self.change.touched_of(slot)[tier]
        for key in keys:
            held.add(key)
            if key not in self.claims.ambiguous:
                touched[key] = True

    def release(self, slot: int, tier: Tier, keys: Iterable[int]) -> None:
        """One engine hash less holds these keys."""
        held, touched = self._held(slot)[tier], self.change.touched_of(slot)[tier]
        for key in keys:
            if held.remove(key):
                touched[key] = False

    def clear_gpu(self) -> bool:
        """No engine hash holds a key on the gpu any more. Returns whether one did."""
        self.change.clear_gpu()
        had_any = False
        for held in self._held_in.values():
            if held[Tier.GPU].keys:
                had_any = True
                held[Tier.GPU].clear()
        return had_any

    def claim(self, engine_hash: int, key: int) -> bool:
        """Map the engine hash to the key. Returns whether that made the key ambiguous, so that it is hidden now."""
        if not self.claims.claim(engine_hash, key):
            return False
        self._note(key, is_shown=False)
        return True

    def unclaim(self, engine_hash: int, key: int) -> None:
        """The engine hash holds no block any more. The key is shown again where an offloaded run of another hash covers it."""
        if self.claims.release(engine_hash, key):
            self._note(key, is_shown=True)

    def _note(self, key: int, *, is_shown: bool) -> None:
        for slot, tiers in self._held_in.items():
            for tier in Tier:
                if key in tiers[tier].keys:
                    self.change.touched_of(slot)[tier][key] = is_shown
