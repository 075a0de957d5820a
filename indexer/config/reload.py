"""One loop that watches files and reads again what depends on them: a look now and then, which costs one stat per file."""

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Protocol

log = logging.getLogger(__name__)

# A change is noticed within this time.
LOOK_S = 1.0


class WatchedFiles:
    """Some files and their state when they were last looked at. Make it before the files are read, so that no change is missed."""

    def __init__(self, *paths: str) -> None:
        self._paths = paths
        self._seen = self._look()

    def have_changed(self) -> bool:
        """Whether a file was changed, replaced, created or deleted since the last look."""
        before, self._seen = self._seen, self._look()
        return self._seen != before

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp(path) for path in self._paths)


class Reloadable(Protocol):
    """Something that is made from files."""

    @property
    def files(self) -> WatchedFiles: ...

    async def reload(self) -> None:
        """Read the files again. Files that cannot be used are logged and change nothing."""


async def keep_reloading(parts: Sequence[Reloadable], reload_now: asyncio.Event) -> None:
    """Reload each part when its files change, and all of them when the event is set, until cancelled."""
    while True:
        try:
            async with asyncio.timeout(LOOK_S):
                await reload_now.wait()
        except TimeoutError:
            pass
        is_requested = reload_now.is_set()
        reload_now.clear()
        for part in parts:
            if part.files.have_changed() or is_requested:
                try:
                    await part.reload()
                except Exception:  # one part must not keep the others from being reloaded
                    log.exception("reload failed")


def _stamp(path: str) -> tuple[int, int, int] | None:
    """Identifies one state of a file, also where a link is switched to another file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
