"""The block keys that one stream holds in one tier, and how many engine hashes hold each."""

from collections.abc import Callable, Collection
from typing import Protocol

from indexer.compiled import core


class HeldKeys(Protocol):
    """Nearly always one engine hash holds a key: only where more do are they counted. `keys`: all that are held; to read, not to change."""

    @property
    def keys(self) -> Collection[int]: ...

    def add(self, key: int) -> bool:
        """One more engine hash holds it. Returns whether none did before."""

    def remove(self, key: int) -> bool:
        """One engine hash less holds it. Returns whether it was the last."""

    def clear(self) -> None:
        """Drop every holder."""


class HeldKeysInPython:
    """See `HeldKeys`."""

    __slots__ = ("_more", "keys")

    def __init__(self) -> None:
        self.keys: set[int] = set()
        self._more: dict[int, int] = {}

    def add(self, key: int) -> bool:
        if key not in self.keys:
            self.keys.add(key)
            return True
        self._more[key] = self._more.get(key, 1) + 1
        return False

    def add_new(self, keys: dict[int, bool]) -> bool:
        """`add` for many, where none of them is held. Returns whether that is so; if not, nothing was done."""
        if not self.keys.isdisjoint(keys):
            return False
        self.keys.update(keys)
        return True

    def remove(self, key: int) -> bool:
        if key not in self.keys:
            return False
        hashes = self._more.pop(key, 1) - 1
        if not hashes:
            self.keys.remove(key)
            return True
        if hashes > 1:
            self._more[key] = hashes
        return False

    def clear(self) -> None:
        self.keys = set()
        self._more.clear()


make_held_keys: Callable[[], HeldKeys] = HeldKeysInPython if core is None else core.HeldKeys
