"""Reading the logs of many models with few connections: one blocking read waits for many of them.

A Redis that is no Cluster answers for all logs. Who asks joins the next read; who gets nothing from a read stays in it until its time has passed.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from msgspec import Struct

from indexer.errors import StoreError

# So many reads wait at a time, each over a connection of its own. One that ends takes up all who wait to join.
READS_MAX = 32

Entries = list[tuple[bytes, Mapping[bytes, bytes] | None]]
Read = Callable[[Mapping[str, str], int, int | None], Awaitable[dict[str, Entries]]]
"""Log → the identifier after which to read, the most entries of each, and how many milliseconds to wait, None for not at all. Raises StoreError."""


class _Reader(Struct, eq=False):
    log: str
    after: str
    count: int
    until_s: float
    found: "asyncio.Future[Entries]"


class LogReads:
    """`read`: one XREAD. `aclose` ends all reads."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._new: list[_Reader] = []
        self._reads: set[asyncio.Task[None]] = set()

    async def entries(self, log: str, after: str, count: int, wait_ms: int) -> Entries:
        """At most about `count` entries of a log; waits up to `wait_ms` for the first. Raises StoreError."""
        if not wait_ms:
            return (await self._read({log: after}, count, None)).get(log, [])
        reader = _Reader(log, after, count, time.monotonic() + wait_ms / 1000, asyncio.get_running_loop().create_future())
        self._new.append(reader)
        if len(self._reads) < READS_MAX:
            task = asyncio.create_task(self._wait(), name="log reads")
            self._reads.add(task)
            task.add_done_callback(self._reads.discard)
        return await reader.found

    async def aclose(self) -> None:
        tasks = list(self._reads)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for reader in self._new:
            reader.found.cancel()

    async def _wait(self) -> None:
        """Read for those who want to join now, until each has an answer."""
        await asyncio.sleep(0)  # others ask in the same turn
        readers: list[_Reader] = []
        try:
            while True:
                readers = self._join([reader for reader in readers if not reader.found.done()])
                if not readers:
                    return
                await self._read_once(readers)
        except Exception as error:  # noqa: BLE001 - an unexpected error is handed to each who waits
            _fail(readers, error)
        finally:
            for reader in readers:
                reader.found.cancel()

    def _join(self, readers: list[_Reader]) -> list[_Reader]:
        """These and the new ones; a log is read once at a time."""
        logs = {reader.log: reader for reader in readers}
        left = []
        for reader in self._new:
            if reader.found.done():
                continue
            if logs.setdefault(reader.log, reader) is not reader:
                left.append(reader)
        self._new = left
        return list(logs.values())

    async def _read_once(self, readers: list[_Reader]) -> None:
        wait_s = min(reader.until_s for reader in readers) - time.monotonic()
        count = min(reader.count for reader in readers)
        try:
            found = await self._read({reader.log: reader.after for reader in readers}, count, max(1, int(wait_s * 1000)))
        except StoreError as error:
            if error.failure == "refusing" and len(readers) > 1:
                await self._read_apart(readers)
            else:
                _fail_by_redis(readers, error)
            return
        now_s = time.monotonic()
        for reader in readers:
            if not reader.found.done() and (reader.log in found or now_s >= reader.until_s):
                reader.found.set_result(found.get(reader.log, []))

    async def _read_apart(self, readers: list[_Reader]) -> None:
        """One of these logs cannot be read: that is no fault of the others."""
        for reader in readers:
            try:
                found = await self._read({reader.log: reader.after}, reader.count, None)
            except StoreError as error:
                _fail_by_redis([reader], error)
            else:
                if not reader.found.done():
                    reader.found.set_result(found.get(reader.log, []))


def _fail(readers: list[_Reader], error: Exception) -> None:
    for reader in readers:
        if not reader.found.done():
            reader.found.set_exception(error)


def _fail_by_redis(readers: list[_Reader], error: StoreError) -> None:
    """Each gets an error of its own: it is raised in its task."""
    for reader in readers:
        failure = StoreError(error.failure)
        failure.__cause__ = error
        _fail([reader], failure)


def entries_of(answer: Any) -> dict[str, Entries]:
    """What XREAD answers, by log."""
    return {log.decode(): entries for log, entries in answer or ()}
