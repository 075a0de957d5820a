"""A client of the simulated Redis, in place of the library's: what goes over the network takes time, gets lost, or is answered too late."""

import asyncio
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from random import Random
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tests.simulation.redis_server import Command, RedisServer, Request
from tests.simulation.virtual_loop import VirtualLoop

LATENCY_S = (0.0001, 0.003)


class RedisLink:
    """One process's way to Redis. `is_cut`: nothing gets through, in either direction. `loses_answers`: only requests get through."""

    def __init__(self, loop: VirtualLoop, server: RedisServer, random: Random, timeout_s: float, slowness: int) -> None:
        """`slowness`: how many times longer than usual a message takes."""
        self.loop = loop
        self.server = server
        self.random = random
        self.timeout_s = timeout_s
        self.slowness = slowness
        self.is_cut = False
        self.loses_answers = False
        self.is_closed = False

    def latency_s(self) -> float:
        return self.slowness * self.random.uniform(*LATENCY_S)

    async def ask(self, commands: Sequence[Command], wait_s: float | None = None) -> list[Any]:
        """The answers to commands that are sent together. Raises RedisError where the connection fails."""
        if self.is_closed:
            raise RedisConnectionError("closed")
        loop = self.loop
        answered: asyncio.Future[list[Any]] = loop.create_future()

        due_s, context = loop.time() + self.timeout_s, copy_context()

        def receive(answer: list[Any] | RedisError) -> None:
            if answered.done():
                return
            if isinstance(answer, RedisError):
                answered.set_exception(answer)
            else:
                answered.set_result(answer)

        def note_late() -> None:
            loop.call_at(due_s, lambda: receive(RedisTimeoutError("Timeout reading from socket")), context=context)

        def answer(found: list[Any] | RedisError) -> None:
            if self.is_cut or self.loses_answers:
                note_late()
            else:
                loop.later(self.latency_s(), receive, found)

        if self.is_cut:
            note_late()
        else:
            request = Request(commands, answer, note_late, None if wait_s is None else loop.time() + wait_s)
            loop.later(self.latency_s(), self.server.arrive, request)
        return await answered


class SimulatedPipeline:
    """Commands that are sent together."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._commands: list[Command] = []
        self._reads_scores = False

    def execute_command(self, *command: Any) -> None:
        self._commands.append(command)

    def pexpire(self, key: str, ttl_ms: int) -> None:
        self._commands.append(("PEXPIRE", key, ttl_ms))

    def time(self) -> None:
        self._commands.append(("TIME",))

    def get(self, key: str) -> None:
        self._commands.append(("GET", key))

    def hget(self, key: str, field: str) -> None:
        self._commands.append(("HGET", key, field))

    def hgetall(self, key: str) -> None:
        self._commands.append(("HGETALL", key))

    def zrange(self, key: str, start: int, stop: int, *, withscores: bool) -> None:
        assert (start, stop, withscores) == (0, -1, True), "nothing else is asked for"
        self._commands.append(("ZRANGE", key))

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """The answers. Raises RedisError."""
        answers = await self._link.ask(self._commands)
        if raise_on_error:
            for answer in answers:
                if isinstance(answer, RedisError):
                    raise answer
        return answers


class SimulatedClient:
    """The part of `redis.asyncio.Redis` that the product uses."""

    def __init__(self, link: RedisLink) -> None:
        self.link = link

    def pipeline(self, *, transaction: bool) -> SimulatedPipeline:
        assert not transaction, "the product sends no transactions"
        return SimulatedPipeline(self.link)

    async def _ask(self, *command: Any) -> Any:
        (answer,) = await self.link.ask([command])
        if isinstance(answer, RedisError):
            raise answer
        return answer

    async def set(self, key: str, value: Any, *, nx: bool, px: int) -> Any:
        return await self._ask("SET", key, value, nx, px)

    async def zscore(self, key: str, member: str) -> Any:
        return await self._ask("ZSCORE", key, member)

    async def zrem(self, key: str, member: str) -> Any:
        return await self._ask("ZREM", key, member)

    async def pexpire(self, key: str, ttl_ms: int) -> Any:
        return await self._ask("PEXPIRE", key, ttl_ms)

    async def hscan(self, key: str, cursor: int, *, count: int) -> Any:
        return await self._ask("HSCAN", key, cursor, count)

    async def xread(self, logs: Mapping[str, str], *, count: int, block: int | None) -> Any:
        if block is None:
            return await self._ask("XREAD", dict(logs), count)
        (answer,) = await self.link.ask([("XREAD", dict(logs), count)], block / 1000)
        return answer

    async def aclose(self) -> None:
        """Nothing is kept open."""
