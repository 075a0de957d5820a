"""The block keys that one stream holds, by tier, as the index should show them: ambiguous ones are held, but not shown."""

from collections.abc import Iterable

from indexer.core.change import Change
from indexer.core.events import Tier
from indexer.core.held_keys import HeldKeys
from indexer.core.key_claims import KeyClaims


class IndexedKeys:
    """`change`: where to note which keys become shown or hidden; the caller exchanges it for each batch."""

    def __init__(self) -> None:
        self.held: tuple[HeldKeys, ...] = tuple(HeldKeys() for _ in Tier)
        self.claims = KeyClaims()
        self.change = Change()

    def count(self, tier: Tier) -> int:
        """How many keys are shown in a tier."""
        held = self.held[tier].keys
        return len(held) - sum(key in held for key in self.claims.ambiguous)

    def shown(self, tier: Tier) -> set[int]:
        """The keys that are shown in a tier."""
        return self.held[tier].keys - self.claims.ambiguous

    def hold(self, tier: Tier, keys: Iterable[int]) -> None:
        """One more engine hash holds these keys. A key that another hash holds already is noted again: a reader that reads in pieces, while one hash
        takes the place of the other, may see neither."""
        held, touched = self.held[tier], self.change.touched[tier]
        for key in keys:
            held.add(key)
            if key not in self.claims.ambiguous:
                touched[key] = True

    def release(self, tier: Tier, keys: Iterable[int]) -> None:
        """One engine hash less holds these keys."""
        held, touched = self.held[tier], self.change.touched[tier]
        for key in keys:
            if held.remove(key):
                touched[key] = False

    def clear_gpu(self) -> None:
        """No engine hash holds a key on the gpu any more."""
        self.change.clear_gpu()
        self.held[Tier.GPU].clear()

    def claim(self, engine_hash: int, key: int) -> bool:
        """Map the engine hash to the key. Returns whether that made the key ambiguous, so that it is hidden now."""
        if not self.claims.claim(engine_hash, key):
            return False
        for tier in Tier:
            if key in self.held[tier].keys:
                self.change.touched[tier][key] = False
        return True

    def unclaim(self, engine_hash: int, key: int) -> None:
        """The engine hash holds no block any more. The key is shown again where an offloaded run of another hash covers it."""
        if self.claims.release(engine_hash, key):
            for tier in Tier:
                if key in self.held[tier].keys:
                    self.change.touched[tier][key] = True
