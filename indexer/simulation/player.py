"""Plays a recording as the engines would: their sockets, their messages in the recorded order and at the recorded pace, and their history.

Where an engine's sequence numbers start over, it was restarted: its sockets are closed and opened again on the same ports, with an empty history.
Batches from before the recording, or that the recorder missed, are in the history of the engine's first run if a recorded replay has them.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import zmq
import zmq.asyncio

from indexer.errors import SettingError
from indexer.simulation.capture import Exchange, Message
from indexer.simulation.publisher import END, NUMBER_BYTES, Publisher, dial_host

# How long to wait for a subscriber after a restart; it may have gone for good.
RESUBSCRIBE_S = 5.0
# How long messages that were sent may take to leave when sockets are closed.
LINGER_MS = 2_000
TOPIC_PARTS = 3


class PlayedEngine:
    """One engine of a recording, over its restarts. `missing`: batches of its first run that the recording lacks, by number."""

    def __init__(self, name: str, topic: bytes, missing: dict[bytes, tuple[bytes, bytes]]) -> None:
        self.name = name
        self.topic = topic
        self._missing = missing
        self._last: bytes | None = None
        self._publisher: Publisher | None = None

    async def start(self, context: zmq.asyncio.Context, host: str, events_port: int, replay_port: int, *, with_replay: bool) -> None:
        """Start it for the first time. Raises SettingError if it cannot listen."""
        self._listen_at = context, host, with_replay
        self.events_port, self.replay_port = events_port, replay_port
        try:
            await self._open(is_restart=False)
        except zmq.ZMQError as error:
            where = host, events_port, replay_port
            raise SettingError("--host, --events-port and --replay-port", where, f"cannot listen there: {error.strerror}") from None

    async def restart(self) -> None:
        """Start it again on the same ports, unless it runs."""
        if self._publisher is None:
            await self._open(is_restart=True)

    async def _open(self, *, is_restart: bool) -> None:
        context, host, with_replay = self._listen_at
        self._publisher = Publisher(context, host, self.events_port, self.replay_port, history_max=2**62, with_replay=with_replay)
        try:
            await self._publisher.open(is_restart=is_restart)
        except BaseException:
            self._publisher.close()
            self._publisher = None
            raise
        self.events_port, self.replay_port = self._publisher.events_port, self._publisher.replay_port
        self._serving = asyncio.create_task(self._publisher.serve(), name=f"engine {self.name}")

    async def stop(self) -> None:
        """Close its sockets and forget its history, as the end of its process does. Idempotent."""
        if self._publisher is None:
            return
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        self._publisher.close()
        self._publisher = None
        self._last = None
        self._missing = {}

    async def subscribed(self) -> None:
        """Wait until there is a subscriber."""
        assert self._publisher is not None, "it runs"
        await self._publisher.subscribed.wait()

    async def play(self, frames: list[bytes]) -> None:
        """Publish one message, whatever is in it."""
        number = frames[1] if len(frames) == 3 and len(frames[1]) == NUMBER_BYTES and frames[1] != END else None
        if number is not None and self._last is not None and number <= self._last:
            await self.stop()
        if self._publisher is None:
            await self._open(is_restart=True)
            try:
                async with asyncio.timeout(RESUBSCRIBE_S):
                    await self.subscribed()
            except TimeoutError:
                pass
        publisher = self._publisher
        assert publisher is not None, "it runs"
        if number is not None:
            for known in sorted(known for known in self._missing if known < number):
                publisher.add_to_history(self._missing[known][0], known, self._missing.pop(known)[1])
            publisher.add_to_history(frames[0], number, frames[2])
            self._last = number
        await publisher.publish(frames)

    def spec(self, host: str, model: str | None) -> str:
        """What to give to --engine."""
        parts = self.topic.decode(errors="replace").split("@", TOPIC_PARTS - 1)
        model_of_topic = parts[2] if len(parts) == TOPIC_PARTS and parts[0] == "kv" and parts[2] else "recorded"
        replay = f",replay=tcp://{dial_host(host)}:{self.replay_port}" if self._listen_at[2] else ""
        return f"pod={self.name},model={model or model_of_topic},events=tcp://{dial_host(host)}:{self.events_port}{replay}"


class Player:
    """`async with Player(messages, exchanges, …) as player:` the engines of a recording, by name; engine i listens at both ports + i.

    `speed`: recorded seconds that pass in one second; None for as fast as possible. Raises SettingError if an engine cannot listen.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        exchanges: Sequence[Exchange],
        *,
        host: str,
        events_port: int,
        replay_port: int,
        speed: float | None,
        with_replay: bool,
    ) -> None:
        self._messages = messages
        self._address = host, events_port, replay_port
        self._with_replay = with_replay
        self._speed = speed
        self.played = 0
        names = dict.fromkeys(message.engine for message in messages)
        self.engines = {name: PlayedEngine(name, _topic(name, messages), missing_of(name, messages, exchanges)) for name in names}

    async def __aenter__(self) -> Self:
        host, events_port, replay_port = self._address
        async with AsyncExitStack() as stack:
            context = zmq.asyncio.Context()
            context.linger = LINGER_MS
            stack.callback(context.destroy, linger=LINGER_MS)
            for number, engine in enumerate(self.engines.values()):
                ports = (port + number if port else 0 for port in (events_port, replay_port))
                await engine.start(context, host, *ports, with_replay=self._with_replay)
                stack.push_async_callback(engine.stop)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    async def subscribed(self) -> None:
        """Wait until every engine has a subscriber."""
        await asyncio.gather(*(engine.subscribed() for engine in self.engines.values()))

    async def play(self, count: int | None = None) -> None:
        """Play on to the end, or until `count` messages have been played in all."""
        clock = asyncio.get_running_loop().time
        messages = self._messages[self.played : count]
        started_s = clock()
        for message in messages:
            if self._speed is not None:
                await asyncio.sleep((message.received_at_s - messages[0].received_at_s) / self._speed - (clock() - started_s))
            await self.engines[message.engine].play(message.frames)
            self.played += 1

    async def run_steps(self, lines: AsyncIterator[str]) -> AsyncIterator[str]:
        """Carry out one line after the other and yield it when it is done: a number of messages to play up to, `stop ENGINE` or `start ENGINE`.

        Raises SettingError for any other line.
        """
        async for line in lines:
            word, _, name = line.strip().partition(" ")
            if word.isdecimal() and not name:
                await self.play(int(word))
            elif word in ("stop", "start") and name in self.engines:
                await (self.engines[name].stop() if word == "stop" else self.engines[name].restart())
            else:
                raise SettingError("step", line.strip(), f"should be a number of messages, or stop or start and one of {', '.join(self.engines)}")
            yield line.strip()


def _topic(name: str, messages: Sequence[Message]) -> bytes:
    return next((message.frames[0] for message in messages if message.engine == name and len(message.frames) == 3), b"")


def missing_of(name: str, messages: Sequence[Message], exchanges: Sequence[Exchange]) -> dict[bytes, tuple[bytes, bytes]]:
    """Batches of an engine's first run that only replays have: number → (topic, payload)."""
    seen: set[bytes] = set()
    until_s = float("inf")
    topic = _topic(name, messages)
    for message in messages:
        if message.engine != name or len(message.frames) != 3 or len(message.frames[1]) != NUMBER_BYTES:
            continue
        if seen and message.frames[1] <= max(seen):
            until_s = message.received_at_s
            break
        seen.add(message.frames[1])
    return {
        frames[-2]: (topic, frames[-1])
        for exchange in exchanges
        if exchange.engine == name and exchange.t < until_s
        for _, frames in exchange.replies
        if len(frames) > 2 and len(frames[-2]) == NUMBER_BYTES and frames[-2] != END and frames[-2] not in seen
    }
