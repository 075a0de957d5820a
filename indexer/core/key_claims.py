"""The engine hashes of each block key, for an engine that does not announce extra keys.

Two engine hashes with the same tokens then may be two images: while both hold blocks the key that they share is ambiguous, and not indexed. So it
follows from what is held and from nothing before: an owner, who takes over or was there from the start, and a scorer, who follows or loads, agree.
This is the only place that decides it, for the events of an engine as well as for blocks that are loaded from Redis.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from indexer.compiled import core


class KeyClaims(Protocol):
    """Block key → the engine hashes that claim it. `ambiguous`: the keys that more than one hash claims; to read, not to change."""

    @property
    def ambiguous(self) -> set[int]: ...

    def claim(self, engine_hash: int, key: int) -> bool:
        """Map the engine hash to the key. Returns whether that made the key ambiguous."""

    def release(self, engine_hash: int, key: int) -> bool:
        """The engine hash holds no block any more. Returns whether the key is unambiguous again: one hash alone claims it."""


class KeyClaimsInPython:
    """See `KeyClaims`."""

    def __init__(self) -> None:
        self.ambiguous: set[int] = set()
        self._hashes: dict[int, int | set[int]] = {}
        """A set only where there is more than one: nearly always there is one."""

    def claim(self, engine_hash: int, key: int) -> bool:
        claimed_by = self._hashes.setdefault(key, engine_hash)
        if isinstance(claimed_by, set):
            claimed_by.add(engine_hash)
            return False
        if claimed_by == engine_hash:
            return False
        self._hashes[key] = {claimed_by, engine_hash}
        self.ambiguous.add(key)
        return True

    def are_free(self, keys: Iterable[int]) -> bool:
        """Whether no hash claims any of these keys."""
        return self._hashes.keys().isdisjoint(keys)

    def claim_free(self, engine_hashes: Iterable[int], keys: Iterable[int]) -> None:
        """Map each hash to a key of its own. The keys are free."""
        self._hashes.update(zip(keys, engine_hashes, strict=True))

    def release(self, engine_hash: int, key: int) -> bool:
        claimed_by = self._hashes.get(key)
        if isinstance(claimed_by, set):
            claimed_by.discard(engine_hash)
            if len(claimed_by) == 1:
                (self._hashes[key],) = claimed_by
                self.ambiguous.remove(key)
                return True
        elif claimed_by == engine_hash:
            del self._hashes[key]
        return False


make_key_claims: Callable[[], KeyClaims] = KeyClaimsInPython if core is None else core.KeyClaims
