"""Workers of one group ask each other. Here all of them live in one process."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from indexer.workers import worker as module
from indexer.workers.board import WorkerState
from indexer.workers.worker import Worker, WorkerGroup


@asynccontextmanager
async def running(count: int) -> AsyncIterator[list[Worker]]:
    """So many workers, all ready."""
    async with AsyncExitStack() as stack:
        group = WorkerGroup(count, stack.enter_context(socket.socket()))
        workers = [await stack.enter_async_context(Worker(number, group)) for number in range(count)]
        for worker in workers:
            worker.note_starting()
            await worker.note_ready(lambda: True)
        yield workers
    for pair in group.inboxes:
        for end in pair:
            end.close()


async def test_all_others_are_asked_and_long_answers_arrive_whole() -> None:
    async with running(3) as workers:
        for worker in workers:

            async def answer(content: bytes, number: int = worker.number) -> bytes:
                return content * number * 100_000

            worker.handlers["topic"] = answer
        assert await workers[0].ask("topic", b"ab") == {1: b"ab" * 100_000, 2: b"ab" * 200_000}
        assert await workers[1].ask("topic", b"") == {0: b"", 2: b""}


async def test_who_is_down_or_does_not_know_the_topic_or_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(4) as workers:

        async def fail(content: bytes) -> bytes:
            raise RuntimeError("on purpose")

        workers[1].handlers["topic"] = fail
        workers[0].group.board.set_state(3, WorkerState.DOWN)
        assert await workers[0].ask("topic") == {}
        monkeypatch.setattr(module, "ASK_TIMEOUT_S", 0.01)
        forever = asyncio.Event()

        async def wait(content: bytes) -> bytes:
            await forever.wait()
            return b""

        workers[2].handlers["topic"] = wait
        assert await workers[0].ask_one(2, "topic", b"") is None


async def test_a_full_inbox_is_no_answer() -> None:
    async with running(2) as workers:
        asyncio.get_running_loop().remove_reader(workers[1].group.inboxes[1][0].fileno())
        asking = [asyncio.create_task(workers[0].ask_one(1, "topic", b"")) for _ in range(2_000)]
        done, waiting = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        assert done.pop().result() is None
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_ids_say_whose_they_are() -> None:
    async with running(3) as workers:
        for worker in workers:
            ids = {worker.new_id() for _ in range(200)}
            assert len(ids) == 200
            assert all(len(name) == 16 for name in ids)
            assert {workers[0].owner_of(name) for name in ids} == {worker.number}
        assert workers[2].owner_of("no id at all") == workers[2].owner_of("") == 2


async def test_readiness_is_that_of_all_that_accept_requests() -> None:
    async with running(3) as workers:
        board = workers[0].group.board
        assert workers[0].readiness() == (True, [])
        board.set_state(1, WorkerState.STARTING)
        board.set_state(2, WorkerState.LOADING)
        assert workers[0].readiness() == (False, ["worker 1 is starting", "worker 2 is loading"])
        assert workers[1].readiness() == (True, ["worker 2 is loading"])
        board.set_state(1, WorkerState.DOWN)
        assert workers[0].readiness() == (True, ["worker 1 is not running", "worker 2 is loading"])


async def test_the_fewest_connections_are_those_of_workers_that_accept_any() -> None:
    async with running(3) as workers:
        for worker, count in zip(workers, (5, 2, 0), strict=True):
            worker.note_connections(count)
        assert workers[0].least_connections() == 0
        workers[0].group.board.set_state(2, WorkerState.LOADING)
        assert workers[0].least_connections() == 2
        workers[1].note_connections(-1)
        assert workers[0].least_connections() == 1
