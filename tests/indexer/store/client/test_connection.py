"""What comes of awaiting Redis, and what its errors mean."""

import asyncio

import pytest
import redis
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from indexer.store.client.connection import answer_of, why
from tests.ports import free_port
from tests.redis_server import RedisServer


async def losing(asked: asyncio.Event, error: Exception | None = None) -> int:
    """A call that loses its cancellation."""
    asked.set()
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        if error is not None:
            raise error from None
    return 1


@pytest.mark.parametrize("error", [None, RedisConnectionError("while cleaning up")])
async def test_a_cancellation_that_the_library_loses_is_found_again(error: Exception | None) -> None:
    asked = asyncio.Event()
    task = asyncio.create_task(answer_of(losing(asked, error)))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_answers_and_errors_pass_through() -> None:
    async def answer() -> int:
        return 7

    async def fail() -> int:
        raise RedisConnectionError("away")

    assert await answer_of(answer()) == 7
    with pytest.raises(RedisConnectionError, match="away"):
        await answer_of(fail())


def test_a_connection_that_is_closed_at_once_is_one_that_was_lost() -> None:
    """uvloop raises no OSError where a command is sent on it, and the library expects nothing else."""

    async def send() -> None:
        closed = asyncio.Event()

        def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.abort()
            closed.set()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        try:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            await closed.wait()
            writer.transport.abort()
            await asyncio.sleep(0.01)
            writer.writelines([b"PING\r\n"])
        finally:
            server.close()

    async def fail() -> None:
        raise RuntimeError("an error of ours")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        with pytest.raises(RedisConnectionError, match="closed"):
            runner.run(answer_of(send()))
        with pytest.raises(RuntimeError, match="ours"):
            runner.run(answer_of(fail()))


def refusals(client: redis.Redis) -> list[str]:
    """What is said to be wrong with a write, and with one of a script's."""
    found = []
    for write in (lambda: client.set("name", "value"), lambda: client.eval("return redis.call('SET', KEYS[1], 'value')", 1, "name")):
        with pytest.raises(RedisError) as raised:
            write()
        found.append(why(raised.value))
    return found


def test_a_full_redis_is_told_from_one_that_refuses(server: RedisServer) -> None:
    client = server.client()
    client.config_set("maxmemory", 1)
    try:
        assert refusals(client) == ["full", "full"]
    finally:
        client.config_set("maxmemory", 0)
    client.delete("name")
    client.lpush("name", "a list")
    with pytest.raises(RedisError) as raised:
        client.get("name")
    assert why(raised.value) == "refusing"


def test_a_replica_is_read_only(server: RedisServer) -> None:
    client = server.client()
    client.replicaof("127.0.0.1", free_port())
    try:
        assert refusals(client) == ["read-only", "read-only"]
    finally:
        client.replicaof("no", "one")


def test_one_that_does_not_answer_is_unreachable() -> None:
    with RedisServer() as server:
        client = server.client(socket_timeout=0.2)
        server.freeze()
        assert refusals(client) == ["unreachable", "unreachable"]
        server.kill()
        assert refusals(client) == ["unreachable", "unreachable"]
