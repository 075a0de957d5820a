"""The objects of one kind as they are now: a list, then what changes, and a list again where that is not known.

    list ─▶ watch ─▶ (its end) watch from the last version ─▶ …
      ▲       │
      └───────┴─ too old a version: at once; anything else that fails: after a pause, which doubles

Nothing is forgotten while the server is away: the next list says what is gone.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Generic

from msgspec import Struct

from indexer.discovery.errors import SourceError, Trouble
from indexer.discovery.kube_api import KubeApi, Resource, T

log = logging.getLogger(__name__)

# A watch that lasts no longer shows nothing of a server that works.
SHORT_S = 1.0


class WatchTimes(Struct, frozen=True):
    """`watch_s`: the server ends a watch after a time between these, so that not all begin again together. `silence_s`: how much longer an answer may
    take: bookmarks come only before the end, so that nothing else tells a frozen server from a quiet one. `pause_s`: the first and the longest pause.
    """

    watch_s: tuple[int, int] = (50, 70)
    silence_s: float = 10.0
    pause_s: tuple[float, float] = (0.2, 15.0)


class Health:
    """Whether a source can be read. `note_error` is called with the reason of each failure."""

    def __init__(self, source: str, note_error: Callable[[Trouble], None]) -> None:
        self._source = source
        self._note_error = note_error
        self._failure: str | None = None
        self._since_s = time.time()

    def failures(self) -> Iterator[str]:
        """What it cannot do now, and since when."""
        if self._failure is not None:
            yield f"{self._failure}, since {datetime.fromtimestamp(self._since_s, UTC).isoformat(timespec='seconds').replace('+00:00', 'Z')}"

    def note_failure(self, error: SourceError) -> None:
        """It failed; one line in the log for each other reason in words."""
        self._note_error(error.reason)
        if self._failure is None:
            self._since_s = time.time()
        if self._failure != str(error):
            log.warning("discovery failed", extra={"source": self._source, "reason": error.reason, "error": str(error)})
        self._failure = str(error)

    def note_success(self) -> None:
        """It answers."""
        if self._failure is not None:
            log.info("discovery works again", extra={"source": self._source, "after_s": round(time.time() - self._since_s, 1)})
            self._failure = None


class ListWatch(Generic[T]):
    """`run` keeps `objects` as they are on the server, by name; None before the first list. `changed` is called after each change."""

    def __init__(self, api: KubeApi, resource: Resource[T], health: Health, changed: Callable[[], None], times: WatchTimes) -> None:
        self.objects: dict[str, T] | None = None
        self._api = api
        self._resource: Resource[T] = resource
        self._health = health
        self._changed = changed
        self._times = times
        self._version = ""
        self._opened_s: float | None = None

    async def run(self) -> None:
        """Cancel it."""
        pause_s, pause_max_s = self._times.pause_s
        while True:
            self._opened_s = None
            try:
                await self._follow()
            except SourceError as error:
                # Too old a version is as it should be: the server keeps the changes of some minutes.
                if error.reason != "expired" or pause_s >= pause_max_s:
                    self._health.note_failure(error)
            except Exception:  # an error of ours must not end the watch for good
                log.exception("discovery failed")
            if self._opened_s is not None and time.monotonic() - self._opened_s > SHORT_S:
                pause_s = self._times.pause_s[0]
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, pause_max_s)

    async def _follow(self) -> None:
        """Ends with what is raised: SourceError."""
        objects, self._version = await self._api.list(self._resource)
        self.objects = {each.metadata.name: each for each in objects}
        self._changed()
        while True:
            await self._watch(self.objects)

    async def _watch(self, objects: dict[str, T]) -> None:
        watch_s = random.randint(*self._times.watch_s)
        changes = self._api.watch(self._resource, self._version, watch_s, watch_s + self._times.silence_s, self._note_open)
        began_s = time.monotonic()
        async with aclosing(changes):
            async for change in changes:
                self._version = change.version or self._version
                if change.object is None:
                    continue
                if change.is_deleted:
                    objects.pop(change.object.metadata.name, None)
                else:
                    objects[change.object.metadata.name] = change.object
                self._changed()
        if time.monotonic() - began_s < SHORT_S:
            # A server that ends every watch at once would be asked without a pause.
            await asyncio.sleep(self._times.pause_s[0])

    def _note_open(self) -> None:
        self._opened_s = time.monotonic()
        self._health.note_success()
