"""Records what engines publish, and their replies to replay requests, to files: for bug reports, tests and benches."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from msgspec import Struct

from indexer.engines.spec import EngineSpec
from indexer.errors import SettingError
from indexer.limits import ReceiveLimits
from indexer.receiving.inbox import Inbox
from indexer.receiving.replay import ReplayRequest
from indexer.receiving.room import Room
from indexer.receiving.subscriber import Subscriber
from indexer.simulation.capture import FRAMES, REPLAYS, CaptureWriter, Exchange, Message

# A killed recorder loses at most what arrived within this time.
FLUSH_S = 0.5
END = b"\xff" * 8
# Upper bound of what an entry adds to the frames of a message: headers, time and the stream's name.
OVERHEAD_BYTES = 1_024


class RecordingLimits(Struct, frozen=True):
    """When a recording ends. `bytes`: of both files together."""

    seconds: float | None = None
    frames: int | None = None
    bytes: int = 2**30


class Source(Struct, frozen=True):
    """One stream. `name`: its name in the file."""

    name: str
    events: str
    replay: str | None
    topic: str

    @classmethod
    def of(cls, spec: EngineSpec) -> "list[Source]":
        """A pod's streams: called as the pod is, and where it has several ranks `pod/rank`. Raises SettingError."""
        if spec.events is None:
            raise SettingError("--engine", spec.pod, "has no events endpoint to connect to; events is required")
        sources = []
        for rank in spec.stream_ranks:
            events, replay = spec.endpoints(rank)
            assert events is not None, "there is one for each rank"
            sources.append(cls(f"{spec.pod}/{rank}" if len(spec.stream_ranks) > 1 else spec.pod, events, replay, spec.topic))
        return sources


class _Stream:
    """One stream that is recorded."""

    def __init__(self, source: Source, inbox: Inbox) -> None:
        self.source = source
        self.inbox = inbox
        self.epoch = 0
        self.last: int | None = None
        self.messages = 0
        self.gaps = 0
        self.replaying: asyncio.Task[None] | None = None
        self.to_replay: tuple[int, str] | None = None

    def count(self, frames: list[bytes]) -> int | None:
        """Count a message. Returns the first number that is missing before it, if any is."""
        self.messages += 1
        if len(frames) != 3 or len(frames[1]) != 8:
            return None
        number = int.from_bytes(frames[1], "big")
        last, self.last = self.last, number
        if last is None or number <= last + 1:
            return None
        self.gaps += 1
        return last + 1


class Recorder:
    """`async with Recorder(sources, out, limits) as recorder: await recorder.run(stop)`. Files are `<out>.frames.msgpack` and, where a stream has
    a replay endpoint, `<out>.replays.msgpack`: after each connection and each gap a replay of what is missing is requested.

    Raises SettingError for an endpoint or a file that cannot be used, CaptureError if a file cannot be written any more.
    """

    def __init__(self, sources: Sequence[Source], out: str, limits: RecordingLimits) -> None:
        self._limits = limits
        self._out = out
        self._woken = asyncio.Event()
        self._room = Room(ReceiveLimits().inboxes_bytes_max)
        self.streams = [_Stream(source, Inbox(ReceiveLimits(), self._woken.set, self._room)) for source in sources]

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self.frames = CaptureWriter(self._out + FRAMES, "--out")
            stack.callback(self.frames.close)
            self.replays = None
            if any(stream.source.replay for stream in self.streams):
                self.replays = CaptureWriter(self._out + REPLAYS, "--out")
                stack.callback(self.replays.close)
            subscriber = await stack.enter_async_context(Subscriber(self._room))
            for stream in self.streams:
                try:
                    await subscriber.add(stream.source.events, stream.source.topic.encode(), stream.inbox, ReceiveLimits())
                except OSError as error:
                    raise SettingError("--engine", stream.source.events, f"cannot be connected to: {error.strerror}") from None
            stack.push_async_callback(self._cancel_replays)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    @property
    def size(self) -> int:
        """Bytes of both files."""
        return self.frames.size + (self.replays.size if self.replays is not None else 0)

    async def run(self, stop: asyncio.Event) -> None:
        """Record until a limit is reached or `stop` is set."""
        deadline_s = time.monotonic() + (self._limits.seconds or float("inf"))
        stopping = asyncio.create_task(stop.wait(), name="stop")
        stopping.add_done_callback(lambda _: self._woken.set())
        try:
            while not stop.is_set() and time.monotonic() < deadline_s and self._take():
                self._flush()
                await self._wait(min(FLUSH_S, deadline_s - time.monotonic()))
        finally:
            stopping.cancel()
            await asyncio.gather(stopping, return_exceptions=True)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return
        self._woken.clear()

    def _take(self) -> bool:
        """Take what all streams have. Returns whether there is room for more."""
        for stream in self.streams:
            if stream.inbox.epoch != stream.epoch:
                stream.epoch = stream.inbox.epoch
                stream.to_replay = 0, "from 0" if stream.epoch == 1 else "after reconnect, from 0"
            while (item := stream.inbox.take()) is not None:
                message = Message(time.time(), stream.source.name, item[1])
                if self.size + sum(map(len, item[1])) + OVERHEAD_BYTES > self._limits.bytes:
                    return False
                self.frames.add(message)
                if (missing := stream.count(item[1])) is not None and stream.to_replay is None:
                    stream.to_replay = missing, f"gap, from {missing}"
                if self.frames.items == self._limits.frames:
                    return False
        return True

    def _flush(self) -> None:
        self.frames.flush()
        if self.replays is not None:
            self.replays.flush()
        for stream in self.streams:
            self._request_replay(stream)

    def _request_replay(self, stream: _Stream) -> None:
        """One replay at a time; what is missing meanwhile is requested next, from its first batch on."""
        if stream.replaying is not None and stream.replaying.done():
            stream.replaying.result()
            stream.replaying = None
        if stream.replaying is None and stream.to_replay is not None and stream.source.replay is not None:
            exchange = self._exchange(stream.source.name, stream.source.replay, *stream.to_replay)
            stream.replaying, stream.to_replay = asyncio.create_task(exchange, name="replay"), None

    async def _exchange(self, name: str, endpoint: str, start: int, note: str) -> None:
        """One replay request and its replies, written when it has ended, since the replies are a list inside the entry."""
        assert self.replays is not None, "a stream has a replay endpoint"
        started_s = time.time()
        replies: list[tuple[float, list[bytes]]] = []
        ended = False
        held = 0

        def is_wanted() -> bool:
            return not ended and self.size + held <= self._limits.bytes

        try:
            async with ReplayRequest(endpoint, start, ReceiveLimits(), self._room) as request:
                async for chunk in request.replies(is_wanted):
                    replies += [(time.time(), frames) for frames in chunk]
                    held += sum(len(frame) for frames in chunk for frame in frames)
                    ended = any(len(frames) > 1 and frames[-2] == END for frames in chunk)
        except OSError as error:
            raise SettingError("replay", endpoint, f"cannot be connected to: {error.strerror}") from None
        if self.size + held <= self._limits.bytes:
            self.replays.add(Exchange(started_s, name, start.to_bytes(8, "big"), note, ended, replies, time.time()))

    async def _cancel_replays(self) -> None:
        tasks = [stream.replaying for stream in self.streams if stream.replaying is not None]
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
