"""The sockets between engines and indexers: what is published arrives in its order, late, twice connected, or not at all."""

import struct
from collections import deque
from contextvars import copy_context
from itertools import count
from random import Random
from types import TracebackType
from typing import Any, Self

import zmq
from msgspec import Struct

from indexer.limits import ReceiveLimits
from indexer.receiving.inbox import Inbox
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
            self._loop.call_soon(self._end, connection, context=self._context)

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
        self._unanswered: list[tuple[SimulatedEngine, SimulatedSocket, int]] = []
        self._numbers = count(1)

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

    def new_descriptor(self) -> int:
        return next(self._numbers)

    def ask(self, asking: "SimulatedSocket", endpoint: str, start: int) -> None:
        """A request for a replay is on its way."""
        engine = self.engines[endpoint]
        if (asking.process, engine) not in self.cuts:
            self.loop.later(self.latency_s(), self._carry, engine, asking, start)

    def _carry(self, engine: SimulatedEngine, asking: "SimulatedSocket", start: int) -> None:
        if asking.closed:
            return
        if not engine.is_alive:
            self._unanswered.append((engine, asking, start))  # the socket connects once it can, and sends it then
            return
        due_s = self.loop.time() + self.latency_s()
        for frames in engine.answer(start):
            due_s += self.random.choice((0.0, 0.0, 0.001))
            self.loop.call_at(due_s, asking.receive, frames, context=asking.context)


class SimulatedSocket:
    """A socket of libzmq, as far as a request for a replay needs one."""

    def __init__(self, network: EngineNetwork) -> None:
        self.process = PROCESS.get()
        self.context = copy_context()
        self.closed = False
        self._network = network
        self._descriptor = network.new_descriptor()
        self._received: deque[Frames] = deque()
        self._endpoint = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def connect(self, endpoint: str) -> None:
        self._endpoint = endpoint

    def send_multipart(self, frames: Frames, flags: int) -> None:
        (start,) = struct.unpack(">Q", frames[-1])
        self._network.ask(self, self._endpoint, start)

    def receive(self, frames: Frames) -> None:
        """It has come."""
        if not self.closed:
            self._received.append(frames)
            self._network.loop.note_readable(self._descriptor)

    def recv_multipart(self, flags: int) -> Frames:
        """Raises zmq.Again where nothing has come."""
        if not self._received:
            raise zmq.Again
        return self._received.popleft()

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        self.closed = True


class SimulatedContext:
    """A context of libzmq."""

    def __init__(self, network: EngineNetwork) -> None:
        self._network = network

    def set(self, option: int, value: int) -> None:
        """There is no limit here."""

    def socket(self, kind: int) -> SimulatedSocket:
        return SimulatedSocket(self._network)

    def destroy(self, linger: int) -> None:
        """Sockets are closed by who opened them."""


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
