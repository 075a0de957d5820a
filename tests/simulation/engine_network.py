"""The sockets between engines and indexers: what is published arrives in its order, late, twice connected, or not at all."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from random import Random
from types import TracebackType
from typing import Any, Self

from msgspec import Struct

from indexer.limits import ReceiveLimits
from indexer.receiving.inbox import Inbox
from indexer.receiving.replay import ReplayRequest
from indexer.receiving.room import Room
from tests.simulation.engine import Frames, SimulatedEngine
from tests.simulation.virtual_loop import PROCESS, Process, VirtualLoop

LATENCY_S = (0.0001, 0.004)
RECONNECT_S = 0.03
# A connection over which nothing comes any more is noticed after so long.
HEARTBEAT_TIMEOUT_S = 0.25


class Connection(Struct, eq=False):
    """One connection of a subscription. `due_s`: when its last message arrives. `delayed`: what waits for a cut to end."""

    is_up: bool = False
    is_closed: bool = False
    due_s: float = 0.0
    delayed: list[Frames] = []


class Subscription:
    """What one indexer has subscribed to. `losses`: so many of the next messages are lost."""

    def __init__(self, network: "EngineNetwork", engine: SimulatedEngine, inbox: Inbox) -> None:
        self.engine = engine
        self.inbox = inbox
        self.process = PROCESS.get()
        self.losses = 0
        self._network = network
        self._loop = network.loop
        self._context = copy_context()
        self._connection = Connection(is_closed=True)
        self._life_heard = 0

    @property
    def is_cut(self) -> bool:
        return (self.process, self.engine) in self._network.cuts

    def connect(self) -> None:
        """Connect once the engine accepts it."""
        if not self.engine.is_alive or self.is_cut or not self._connection.is_closed:
            return
        connection = self._connection = Connection(delayed=[])
        self._at(connection, self._network.latency_s(), self._begin, connection)

    def _at(self, connection: Connection, delay_s: float, callback: Any, *args: Any) -> None:
        """Later than all that is on its way already, and when the indexer runs."""
        connection.due_s = max(connection.due_s, self._loop.time() + delay_s)
        self._loop.call_at(connection.due_s, callback, *args, context=self._context)

    def _begin(self, connection: Connection) -> None:
        if connection is self._connection and not connection.is_closed:
            connection.is_up = True
            self.inbox.begin()
            self.inbox.wake()

    def send(self, frames: Frames) -> None:
        """The engine published this. A message to who has not connected yet is lost."""
        connection = self._connection
        if connection.is_closed or not connection.is_up:
            return
        if self.losses:
            self.losses -= 1
        elif self.is_cut:
            connection.delayed.append(frames)
        else:
            self._at(connection, self._network.latency_s(), self._deliver, connection, frames)

    def _deliver(self, connection: Connection, frames: Frames) -> None:
        if connection is self._connection and connection.is_up:
            self.engine.note_heard(int.from_bytes(frames[1], "big"), is_first=self._life_heard != self.engine.life)
            self._life_heard = self.engine.life
            self.inbox.put(frames)
            self.inbox.wake()

    def note_change(self) -> None:
        """The engine's process ended, or began."""
        if not self.engine.is_alive:
            if self._network.random.random() < 0.5:
                self._end(self._connection)  # what is on its way is lost with it
            else:
                self._at(self._connection, self._network.latency_s(), self._end, self._connection)
        else:
            self._end(self._connection)
            self.connect_soon()

    def note_cut(self) -> None:
        """Nothing gets through from now on."""
        self._loop.later(HEARTBEAT_TIMEOUT_S, self._time_out, self._connection)

    def _time_out(self, connection: Connection) -> None:
        if self.is_cut:
            self._loop.call_soon(self._replace, connection, context=self._context)

    def _replace(self, connection: Connection) -> None:
        """A frozen indexer may notice only after the cut that the connection is dead."""
        self._end(connection)
        self.connect_soon()

    def note_healed(self) -> None:
        """Messages get through again, and what was sent meanwhile comes late."""
        delayed, self._connection.delayed = self._connection.delayed, []
        for frames in delayed:
            self.send(frames)
        self.connect_soon()

    def connect_soon(self) -> None:
        self._loop.later(RECONNECT_S, self.connect)

    def _end(self, connection: Connection) -> None:
        was_up, connection.is_closed, connection.is_up = connection.is_up, True, False
        if connection is self._connection and was_up:
            self.inbox.connected = False
            self.inbox.wake()

    def drop(self) -> None:
        """The connection breaks, and is made again."""
        self._end(self._connection)
        self.connect_soon()

    def close(self) -> None:
        self._connection.is_closed = True
        self._connection.is_up = False


class EngineNetwork:
    """`engines`: by their endpoints. `cuts`: pairs of an indexer's process and an engine between which nothing gets through."""

    def __init__(self, loop: VirtualLoop, random: Random) -> None:
        self.loop = loop
        self.random = random
        self.engines: dict[str, SimulatedEngine] = {}
        self.cuts: set[tuple[Process | None, SimulatedEngine]] = set()
        self.subscriptions: list[Subscription] = []
        self._unanswered: list[tuple[SimulatedEngine, ReplayLine, int]] = []

    def latency_s(self) -> float:
        return self.random.uniform(*LATENCY_S)

    def add(self, engine: SimulatedEngine) -> None:
        self.engines[engine.events] = engine
        if engine.replay is not None:
            self.engines[engine.replay] = engine

        def publish(frames: Frames) -> None:
            for subscription in self.of(engine):
                subscription.send(frames)

        def change() -> None:
            for subscription in self.of(engine):
                subscription.note_change()
            waiting, self._unanswered = self._unanswered, []
            for asked in waiting:
                self._carry(*asked)

        engine.on_publish, engine.on_change = publish, change

    def of(self, engine: SimulatedEngine, process: Process | None = None) -> list[Subscription]:
        """The subscriptions to an engine, of all processes or of one."""
        return [one for one in self.subscriptions if one.engine is engine and process in (None, one.process)]

    def cut(self, process: Process, engine: SimulatedEngine) -> None:
        self.cuts.add((process, engine))
        for subscription in self.of(engine, process):
            subscription.note_cut()

    def heal(self, process: Process, engine: SimulatedEngine) -> None:
        self.cuts.discard((process, engine))
        for subscription in self.of(engine, process):
            subscription.note_healed()

    def subscribe(self, endpoint: str, inbox: Inbox) -> None:
        subscription = Subscription(self, self.engines[endpoint], inbox)
        self.subscriptions.append(subscription)
        subscription.connect_soon()

    def unsubscribe(self, inbox: Inbox) -> None:
        for subscription in [one for one in self.subscriptions if one.inbox is inbox]:
            subscription.close()
            self.subscriptions.remove(subscription)

    def forget(self, process: Process) -> None:
        """A process ended: so did its connections."""
        for subscription in [one for one in self.subscriptions if one.process is process]:
            self.unsubscribe(subscription.inbox)

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

    def __init__(self, network: EngineNetwork) -> None:
        self._network = network

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Streams have unsubscribed."""

    async def add(self, endpoint: str, topic: bytes, inbox: Inbox, limits: ReceiveLimits) -> None:
        self._network.subscribe(endpoint, inbox)

    async def remove(self, inbox: Inbox) -> None:
        self._network.unsubscribe(inbox)
