"""Noticing that files changed."""

import asyncio
from pathlib import Path

import pytest

from indexer.config import reload as file_watch
from indexer.config.reload import Asking, FileWatch


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "LOOK_S", 0.01)


async def notices(watch: FileWatch) -> bool:
    """Whether it does within a while."""
    try:
        async with asyncio.timeout(0.2):
            await watch.changed()
    except TimeoutError:
        return False
    return True


def test_each_change_is_noticed_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")

    async def scenario() -> None:
        watch = FileWatch(str(one), str(two))
        assert not await notices(watch)
        two.write_text("it was not there")
        assert await notices(watch)
        assert not await notices(watch)
        link = tmp_path / "link"
        link.symlink_to(two)
        link.replace(one)
        assert await notices(watch)
        two.unlink()
        assert await notices(watch)
        assert not await notices(watch)

    asyncio.run(scenario())


def test_all_who_watch_are_told_when_somebody_asks_and_those_who_are_busy_afterwards(tmp_path: Path) -> None:
    async def scenario() -> None:
        asking = Asking()
        waiting, busy, late = (FileWatch(str(tmp_path / "none"), asking=asking) for _ in range(3))
        noticing = asyncio.create_task(notices(waiting))
        await asyncio.sleep(0)
        asking.ask()
        assert await noticing
        assert await notices(busy), "it did not wait when somebody asked"
        assert [await notices(watch) for watch in (waiting, busy)] == [False, False]
        asking.ask()
        assert await notices(FileWatch(str(tmp_path / "none"), asking=asking)) is False, "what was asked before is done with"
        assert await notices(late)

    asyncio.run(scenario())
