"""One simulated Redis server: carries out requests as they arrive, may be down, hang, go back to what it held before, or forget everything."""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from indexer.store.scripts import _DIGESTS
from tests.simulation.redis_model import RedisModel
from tests.simulation.redis_scripts import run_script
from tests.simulation.virtual_loop import VirtualLoop

SCRIPT_OF = {digest: script for script, digest in _DIGESTS.items()}
REFUSED = "Connection refused"

Command = Sequence[Any]


class Request(Struct, eq=False):
    """Commands that one client sent in one piece. `answer` is called once, with their answers, or with the error of the connection. `note_late` is
    called where the answer may come too late: a clock for each would cost more than most requests."""

    commands: Sequence[Command]
    answer: Any
    note_late: Any
    waits_until_s: float | None = None
    """Of a read that waits for something new."""


class RedisServer:
    """`epoch` counts how often it became another server, as Sentinels would say; `is_named`: whether they do."""

    def __init__(self, loop: VirtualLoop, clock_ms: int) -> None:
        self._loop = loop
        self._clock_ms = clock_ms
        self.model = RedisModel(self.now_ms)
        self.model.on_append = self._note_appended
        self.is_down = False
        self.is_hanging = False
        self.epoch = 0
        self._arrived: list[Request] = []
        self._waiting: list[Request] = []

    def now_ms(self) -> int:
        """Its clock."""
        return self._clock_ms + int(self._loop.time() * 1000)

    def arrive(self, request: Request) -> None:
        """Carry out a request, once the server goes on."""
        if self.is_down:
            request.answer(RedisConnectionError(REFUSED))
        elif self.is_hanging:
            self._arrived.append(request)
            request.note_late()
        else:
            self._carry_out(request)

    def _carry_out(self, request: Request) -> None:
        if request.waits_until_s is None:
            request.answer([self._execute(command) for command in request.commands])
        elif not self._answer_read(request):
            self._waiting.append(request)
            self._loop.later(max(0.0, request.waits_until_s - self._loop.time()), self._end_wait, request)

    def _answer_read(self, request: Request) -> bool:
        ((_, logs, count),) = request.commands
        if found := self.model.xread(logs, count):
            request.answer([found])
        return bool(found)

    def _end_wait(self, request: Request) -> None:
        if request in self._waiting:
            self._waiting.remove(request)
            request.answer([[]])

    def _note_appended(self, key: str) -> None:
        if any(key in request.commands[0][1] for request in self._waiting):
            self._loop.later(0.0, self._answer_waiting)

    def _answer_waiting(self) -> None:
        if not self.is_hanging:
            self._waiting = [request for request in self._waiting if not self._answer_read(request)]

    def _execute(self, command: Command) -> Any:
        name, *words = command
        try:
            if name == "EVALSHA":
                digest, count, *more = words
                return run_script(self.model, SCRIPT_OF[digest], more[:count], more[count:])
            if name == "XREAD":
                return self.model.xread(*words)
            return self.model.execute(name, *words)
        except ResponseError as error:
            return error

    # Faults

    def shift_clock(self, by_ms: int) -> None:
        """Its clock shows another time from now on."""
        self._clock_ms += by_ms

    def stop(self) -> None:
        """All connections are closed."""
        self.is_down = True
        self._close_connections(RedisConnectionError("Connection closed by server."))

    def start(self) -> None:
        self.is_down = False

    def hang(self) -> None:
        """Requests that arrive wait."""
        self.is_hanging = True

    def go_on(self) -> None:
        """Carry out all that arrived meanwhile, however long ago it was sent."""
        self.is_hanging = False
        arrived, self._arrived = self._arrived, []
        for request in arrived:
            self.arrive(request)
        self._answer_waiting()

    def become(self, held: Any) -> None:
        """Another server takes its place, or it starts again from an older file: it holds this, and all connections are closed."""
        self._close_connections(RedisConnectionError("Connection closed by server."))
        self.model.go_back(held)

    def _close_connections(self, error: RedisError) -> None:
        waiting, self._waiting = self._waiting, []
        arrived, self._arrived = self._arrived, []
        for request in (*waiting, *arrived):
            request.answer(error)
