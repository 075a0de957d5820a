"""The network between engines and indexers: which of them are connected, and how requests for replays are answered."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import copy_context
from random import Random
from types import TracebackType
from typing import Self

from indexer.limits import ReceiveLimits
from indexer.receiving.inbox import Inbox
from indexer.receiving.listening import Announced
from indexer.receiving.reactor import Reactor
from indexer.receiving.replay import ReplayRequest
from indexer.receiving.room import Room
from tests.simulation.engine import Frames, SimulatedEngine
from tests.simulation.engine_lines import RECONNECT_S, DialledPort, Line, SimulatedPort, Subscription
from tests.simulation.virtual_loop import PROCESS, Process, VirtualLoop

LATENCY_S = (0.0001, 0.004)


class EngineNetwork:
    """`engines`: by their endpoints. `cuts`: pairs of an indexer's process and an engine between which nothing gets through."""

    def __init__(self, loop: VirtualLoop, random: Random) -> None:
        self.loop = loop
        self.random = random
        self.engines: dict[str, SimulatedEngine] = {}
        self.cuts: set[tuple[Process | None, SimulatedEngine]] = set()
        self.lines: list[Line] = []
        self._unanswered: list[tuple[SimulatedEngine, ReplayLine, int]] = []

    def latency_s(self) -> float:
        return self.random.uniform(*LATENCY_S)

    def add(self, engine: SimulatedEngine) -> None:
        self.engines[engine.events] = engine
        if engine.replay is not None:
            self.engines[engine.replay] = engine

        def publish(frames: Frames) -> None:
            for line in self.of(engine):
                line.send(frames)

        def change() -> None:
            for line in self.of(engine):
                line.note_change()
            waiting, self._unanswered = self._unanswered, []
            for asked in waiting:
                self._carry(*asked)

        engine.on_publish, engine.on_change = publish, change

    def of(self, engine: SimulatedEngine, process: Process | None = None) -> list[Line]:
        """The lines to an engine, of all processes or of one."""
        return [one for one in self.lines if one.engine is engine and process in (None, one.process)]

    def cut(self, process: Process, engine: SimulatedEngine) -> None:
        self.cuts.add((process, engine))
        for line in self.of(engine, process):
            line.note_cut()

    def heal(self, process: Process, engine: SimulatedEngine) -> None:
        self.cuts.discard((process, engine))
        for line in self.of(engine, process):
            line.note_healed()

    def subscribe(self, endpoint: str, inbox: Inbox) -> None:
        subscription = Subscription(self, self.engines[endpoint], inbox)
        self.lines.append(subscription)
        subscription.connect_soon()

    def unsubscribe(self, inbox: Inbox) -> None:
        self._close([line for line in self.lines if isinstance(line, Subscription) and line.inbox is inbox])

    def _close(self, lines: Iterable[Line]) -> None:
        for line in lines:
            line.close()
            self.lines.remove(line)

    def forget(self, process: Process) -> None:
        """A process ended: so did its connections."""
        gone = [line for line in self.lines if line.process is process]
        self._close(gone)
        for line in gone:
            if isinstance(line, DialledPort):
                line.connect_soon()

    # Engines that dial

    def listen(self, port: SimulatedPort) -> None:
        """The process that runs listens."""
        for engine in dict.fromkeys(self.engines.values()):
            if engine.dials:
                line = DialledPort(self, engine, port)
                self.lines.append(line)
                line.connect_soon()

    def dial_soon(self, engine: SimulatedEngine) -> None:
        """Have an engine that is not connected connect to one of those that listen."""
        self.loop.later(RECONNECT_S, self._dial, engine)

    def _dial(self, engine: SimulatedEngine) -> None:
        lines = self.of(engine)
        reachable = [line for line in lines if not line.is_cut]
        if reachable and not any(line.is_open for line in lines):
            self.random.choice(reachable).connect()

    # Replays

    def ask(self, asking: "ReplayLine", endpoint: str, start: int) -> None:
        """A request for a replay is on its way."""
        engine = self.engines[endpoint]
        if (asking.process, engine) not in self.cuts:
            self.loop.later(self.latency_s(), self._carry, engine, asking, start)

    def _carry(self, engine: SimulatedEngine, asking: "ReplayLine", start: int) -> None:
        if asking.over.is_set():
            return
        if not engine.is_alive:
            self._unanswered.append((engine, asking, start))  # it is dialled again until it is there
            return
        due_s = self.loop.time() + self.latency_s()
        for frames in engine.answer(start):
            due_s += self.random.choice((0.0, 0.0, 0.001))
            self.loop.call_at(due_s, asking.receive, frames, context=asking.context)


class ReplayLine:
    """The connection of one request for a replay, in place of one over TCP."""

    is_ready = True

    def __init__(self, network: EngineNetwork, endpoint: str, start: int, note_come: Callable[[], None]) -> None:
        self.process = PROCESS.get()
        self.context = copy_context()
        self.over = asyncio.Event()
        self.pending_bytes = 0
        self._note_come = note_come
        self._received: deque[Frames] = deque()
        network.ask(self, endpoint, start)

    def receive(self, frames: Frames) -> None:
        """It has come."""
        if not self.over.is_set():
            self._received.append(frames)
            self.pending_bytes += sum(map(len, frames))
            self._note_come()

    def next_reply(self) -> Frames | None:
        """The next one, None where there is none yet."""
        if not self._received:
            return None
        reply = self._received.popleft()
        self.pending_bytes -= sum(map(len, reply))
        return reply

    def read_on(self, bytes_max: int) -> None:
        """Everything is read at once."""

    def close(self) -> None:
        self.over.set()


class SimulatedReplay(ReplayRequest):
    """The product's request, but for its connection."""

    def __init__(self, network: EngineNetwork, endpoint: str, start: int, limits: ReceiveLimits, room: Room | None = None) -> None:
        super().__init__(endpoint, start, limits, room)
        self._network, self._start = network, start

    async def _dial(self) -> None:
        line = ReplayLine(self._network, self._endpoint, self._start, self._note_come)
        self._line = line  # type: ignore[assignment] # it has all that is used of a line
        await line.over.wait()


class SimulatedSubscriber:
    """In place of the receiving thread."""

    def __init__(self, network: EngineNetwork, room: Room) -> None:
        self._network = network
        self._room = room
        self._process = PROCESS.get()
        self._ports: list[SimulatedPort] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Streams have unsubscribed; engines that dialled us may dial others."""
        assert self._process is not None, "only processes of the product listen"
        self._network.forget(self._process)

    async def add(self, endpoint: str, topic: bytes, inbox: Inbox, limits: ReceiveLimits) -> None:
        self._network.subscribe(endpoint, inbox)

    async def remove(self, inbox: Inbox) -> None:
        for port in self._ports:
            port.remove(inbox)
            port.unblock()
        self._network.unsubscribe(inbox)

    async def listen(
        self, endpoint: str, rank: int, limits: ReceiveLimits, adopt: Callable[[Announced], None], refuse: Callable[[str, int], None]
    ) -> None:
        loop = self._network.loop
        port = SimulatedPort(
            *(Reactor.__new__(Reactor), endpoint, rank, limits),
            room=self._room,
            announce=lambda announced: loop.call_soon(adopt, announced),
            refuse=refuse,
            changed=lambda inbox: loop.call_soon(inbox.wake),
        )
        self._ports.append(port)
        self._network.listen(port)

    async def expect(self, pod: str, model: str, rank: int, inbox: Inbox) -> None:
        for port in self._ports:
            if port.rank == rank:
                port.expect(pod, model, inbox)

    async def block(self, inbox: Inbox) -> None:
        for port in self._ports:
            port.block(inbox)
