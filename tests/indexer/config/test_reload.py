"""Noticing that files changed, and the loop that reads again what depends on them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from indexer.config import reload
from indexer.config.reload import WatchedFiles, keep_reloading


class Part:
    """Counts how often it is reloaded."""

    def __init__(self, *paths: Path, error: Exception | None = None) -> None:
        self.files = WatchedFiles(*map(str, paths))
        self.count = 0
        self._error = error
        self._reloaded = asyncio.Event()

    async def reload(self) -> None:
        self.count += 1
        self._reloaded.set()
        if self._error is not None:
            raise self._error

    async def wait(self) -> None:
        """Until it is reloaded the next time."""
        async with asyncio.timeout(10):
            await self._reloaded.wait()
        self._reloaded.clear()


@asynccontextmanager
async def reloading(parts: Sequence[Part]) -> AsyncIterator[asyncio.Event]:
    reload_now = asyncio.Event()
    task = asyncio.create_task(keep_reloading(parts, reload_now))
    try:
        yield reload_now
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_each_change_is_noticed_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    files = WatchedFiles(str(one), str(two))
    assert not files.have_changed()
    two.write_text("it was not there")
    assert files.have_changed()
    assert not files.have_changed()
    link = tmp_path / "link"
    link.symlink_to(two)
    link.replace(one)
    assert files.have_changed()
    two.unlink()
    assert files.have_changed()
    assert not files.have_changed()


async def test_what_changes_before_the_loop_starts_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "LOOK_S", 0.01)

    part = Part(tmp_path / "one")
    (tmp_path / "one").write_text("1")
    async with reloading([part]):
        await part.wait()
    assert part.count == 1


async def test_a_change_reloads_what_depends_on_the_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "LOOK_S", 0.01)

    one, other = Part(tmp_path / "one"), Part(tmp_path / "other")
    async with reloading([one, other]):
        for number in (1, 2):
            (tmp_path / "one").write_text("1" * number)
            await one.wait()
    assert (one.count, other.count) == (2, 0)


async def test_a_request_reloads_everything_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "LOOK_S", 3600)

    one, other = Part(tmp_path / "one"), Part()
    async with reloading([one, other]) as reload_now:
        for _ in range(2):
            reload_now.set()
            await one.wait()
            await other.wait()
    assert (one.count, other.count) == (2, 2)


async def test_a_part_that_fails_keeps_no_other_from_being_reloaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wrong, right = Part(error=ValueError("a mistake of ours")), Part()
    async with reloading([wrong, right]) as reload_now:
        for _ in range(2):
            reload_now.set()
            await right.wait()
    assert (wrong.count, right.count) == (2, 2)
    assert [record.message for record in caplog.records] == ["reload failed"] * 2
