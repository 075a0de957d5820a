"""One worker of a group, and what it asks the others: their metrics, and whether a routed request was theirs."""

import asyncio
import logging
import os
import re
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import msgspec
from msgspec import Struct

from indexer.workers.board import WorkerBoard, WorkerState

log = logging.getLogger(__name__)

# A worker that does not answer in this time is left out. Requests keep its event loop for some milliseconds at a stretch.
ASK_TIMEOUT_S = 1.0
QUESTION_BYTES_MAX = 4_096
READY_POLL_S = 0.05
# So often a worker shows the parent that its event loop turns.
BEAT_S = 0.5
ID_BYTES = 8
_ID = re.compile(r"[0-9a-f]{16}")

Handler = Callable[[bytes], Awaitable[bytes]]


class Question(Struct, frozen=True, array_like=True):
    """One datagram. The answer goes to the socket that comes with it."""

    topic: str
    content: bytes


_decode = msgspec.msgpack.Decoder(Question).decode


class WorkerGroup:
    """What all workers inherit: the board, and an inbox for each. Make it before the first fork, and keep it as long as one may be started."""

    def __init__(self, count: int, listener: socket.socket) -> None:
        """`listener`: the socket that all accept from."""
        self.listener = listener
        self.board = WorkerBoard(count)
        self.inboxes = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(count)]
        """The end that the worker reads, and the one that the others write to."""
        for pair in self.inboxes:
            for end in pair:
                end.setblocking(False)
        self.alive, self._lifeline = os.pipe()
        """Readable once the parent has ended."""

    @property
    def count(self) -> int:
        return self.board.count

    def leave_to_parent(self) -> None:
        """In a worker: let go of what shows that the parent lives."""
        os.close(self._lifeline)


class Worker:
    """This process as one of a group; `async with` it, and it answers the others. `handlers`: topic → what answers."""

    def __init__(self, number: int, group: WorkerGroup, *, is_restarted: bool = False) -> None:
        self.number = number
        self.group = group
        self.is_restarted = is_restarted
        self.handlers: dict[str, Handler] = {}
        self._answers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._inbox = self.group.inboxes[self.number][0]
        asyncio.get_running_loop().add_reader(self._inbox.fileno(), self._take)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        asyncio.get_running_loop().remove_reader(self._inbox.fileno())
        for task in self._answers:
            task.cancel()
        await asyncio.gather(*self._answers, return_exceptions=True)

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Show the parent meanwhile that the event loop turns."""

        async def beat() -> None:
            while True:
                self.group.board.beat(self.number)
                await asyncio.sleep(BEAT_S)

        task = asyncio.create_task(beat(), name="beats of a worker")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    def stop_with_parent(self, stop: asyncio.Event) -> None:
        """Set the event once the parent has ended, however it ended."""
        loop = asyncio.get_running_loop()

        def note_end() -> None:
            loop.remove_reader(self.group.alive)
            stop.set()

        loop.add_reader(self.group.alive, note_end)

    # Ids

    def new_id(self) -> str:
        """A random id of a routed request, which says whose it is: its number modulo the count of workers."""
        count = self.group.count
        drawn = secrets.randbits(8 * ID_BYTES - 1)
        return f"{drawn - drawn % count + self.number:0{2 * ID_BYTES}x}"

    def owner_of(self, name: str) -> int:
        """The number of the worker that made an id; this one's own for what is none."""
        return int(name, 16) % self.group.count if _ID.fullmatch(name) else self.number

    # Connections

    def connections(self) -> int:
        """How many connections are open here."""
        return self.group.board.connections(self.number)

    def least_connections(self) -> int:
        """The fewest that one of those has that accept requests."""
        board = self.group.board
        accepting = [number for number, state in board.others(self.number).items() if state in (WorkerState.STARTING, WorkerState.READY)]
        return min(board.connections(number) for number in (self.number, *accepting))

    def note_connections(self, change: int) -> None:
        """So many more are open."""
        self.group.board.set_connections(self.number, self.connections() + change)

    # Readiness

    def readiness(self) -> tuple[bool, list[str]]:
        """Whether all others that accept requests are ready; and in words what is not as it should be with the others."""
        words = {WorkerState.DOWN: "is not running", WorkerState.STARTING: "is starting", WorkerState.LOADING: "is loading"}
        states = self.group.board.others(self.number)
        return WorkerState.STARTING not in states.values(), [f"worker {number} {words[state]}" for number, state in states.items() if state in words]

    def note_starting(self) -> None:
        """It starts. Until it is ready it accepts requests, unless it takes the place of one that died."""
        self.group.board.set_connections(self.number, 0)
        self.group.board.set_state(self.number, WorkerState.LOADING if self.is_restarted else WorkerState.STARTING)

    async def note_ready(self, is_ready: Callable[[], bool]) -> None:
        """Wait until it is ready, and tell the others."""
        while not is_ready():  # noqa: ASYNC110 - what makes it ready is polled anyway
            await asyncio.sleep(READY_POLL_S)
        self.group.board.set_state(self.number, WorkerState.READY)

    # Asking

    async def ask(self, topic: str, content: bytes = b"") -> dict[int, bytes]:
        """Ask all other workers. Number → answer, of those that answered in time."""
        numbers = list(self.group.board.others(self.number))
        answers = await asyncio.gather(*(self.ask_one(number, topic, content) for number in numbers))
        return {number: answer for number, answer in zip(numbers, answers, strict=True) if answer is not None}

    async def ask_one(self, number: int, topic: str, content: bytes) -> bytes | None:
        """None where it does not run, or does not answer in time."""
        if self.group.board.state(number) is WorkerState.DOWN:
            return None
        ours, its = socket.socketpair()
        with ours, its:
            ours.setblocking(False)
            try:
                socket.send_fds(self.group.inboxes[number][1], [msgspec.msgpack.encode(Question(topic, content))], [its.fileno()])
            except OSError:  # its inbox is full: it has not looked there for long
                return None
            its.close()
            try:
                async with asyncio.timeout(ASK_TIMEOUT_S):
                    return await _read_all(ours)
            except (TimeoutError, OSError):
                return None

    def _take(self) -> None:
        try:
            datagram, fds, _, _ = socket.recv_fds(self._inbox, QUESTION_BYTES_MAX, 1)
        except BlockingIOError:
            return
        for fd in fds:
            reply = socket.socket(fileno=fd)
            reply.setblocking(False)
            task = asyncio.create_task(self._answer(_decode(datagram), reply), name="answer to a worker")
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)

    async def _answer(self, question: Question, reply: socket.socket) -> None:
        with reply:
            handler = self.handlers.get(question.topic)
            if handler is None:
                return  # it is starting
            try:
                # The first byte says that there is an answer: a worker that dies closes the socket, too.
                await asyncio.get_running_loop().sock_sendall(reply, b"+" + await handler(question.content))
            except OSError:
                pass  # the other one waits no more
            except Exception:
                log.exception("answer to a worker failed", extra={"topic": question.topic})


async def _read_all(end: socket.socket) -> bytes | None:
    """What comes until the other end is closed; None for nothing."""
    loop = asyncio.get_running_loop()
    pieces = []
    while piece := await loop.sock_recv(end, 65_536):
        pieces.append(piece)
    return b"".join(pieces)[1:] if pieces else None
