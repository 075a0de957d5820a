"""Noticing that files changed: a look now and then, which costs one stat each."""

import asyncio
import os

# A change is noticed so soon.
LOOK_S = 1.0

Look = tuple[tuple[int, int, int] | None, ...]


class Asking:
    """Somebody asks, now and then, that files be read at once: everybody who watches some is told."""

    def __init__(self) -> None:
        self.count = 0
        self._asked = asyncio.Event()

    def ask(self) -> None:
        self.count += 1
        self._asked.set()
        self._asked = asyncio.Event()

    async def wait(self) -> None:
        """Until the next time."""
        await self._asked.wait()


class FileWatch:
    """Watches these files from now on. Make it before they are read, so that no change is missed."""

    def __init__(self, *paths: str, asking: Asking | None = None) -> None:
        self._paths = paths
        self._asking = asking or Asking()
        self._count = self._asking.count
        self._seen = self._look()

    def _look(self) -> Look:
        return tuple(_stamp(path) for path in self._paths)

    async def changed(self) -> None:
        """Until a file is another one, changed or gone, or somebody asks."""
        while True:
            if self._asking.count == self._count:
                try:
                    async with asyncio.timeout(LOOK_S):
                        await self._asking.wait()
                except TimeoutError:
                    pass
            before, self._seen = (self._count, self._seen), self._look()
            self._count = self._asking.count
            if (self._count, self._seen) != before:
                return


def _stamp(path: str) -> tuple[int, int, int] | None:
    """What tells one state of a file from another, also where a link is turned to another file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
