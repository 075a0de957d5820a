"""Lines between an engine and an indexer, whoever of both dials: what is published arrives in its order, late, or not at all."""

from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from indexer.receiving.connection import DISCONNECTED
from indexer.receiving.inbox import Inbox
from indexer.receiving.listening import Listening
from tests.simulation.engine import Frames, SimulatedEngine
from tests.simulation.virtual_loop import PROCESS

if TYPE_CHECKING:
    from tests.simulation.engine_network import EngineNetwork

RECONNECT_S = 0.03
# A connection over which nothing comes any more is noticed after so long.
HEARTBEAT_TIMEOUT_S = 0.25


class Connection(Struct, eq=False):
    """One connection. `due_s`: when its last message arrives. `delayed`: what waits for a cut to end. `peer_host`: the engine's address."""

    is_up: bool = False
    is_closed: bool = False
    due_s: float = 0.0
    delayed: list[Frames] = []
    peer_host: str = ""


class Line:
    """What one indexer may hear of one engine. `losses`: so many of the next messages are lost."""

    def __init__(self, network: "EngineNetwork", engine: SimulatedEngine) -> None:
        self.engine = engine
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

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, or will be one."""
        return not self._connection.is_closed

    def connect(self) -> None:
        """Connect once the other side accepts it."""
        if not self.engine.is_alive or self.is_cut or self.is_open:
            return
        connection = self._connection = Connection(delayed=[], peer_host=self.engine.host)
        self._at(connection, self._network.latency_s(), self._begin, connection)

    def _at(self, connection: Connection, delay_s: float, callback: Any, *args: Any) -> None:
        """Later than all that is on its way already, and when the indexer runs."""
        connection.due_s = max(connection.due_s, self._loop.time() + delay_s)
        self._loop.call_at(connection.due_s, callback, *args, context=self._context)

    def _begin(self, connection: Connection) -> None:
        if connection is self._connection and self.is_open:
            connection.is_up = True
            self._note_up(connection)

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
            self._receive(connection, frames)

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
            self._note_down(connection)

    def drop(self) -> None:
        """The connection breaks, and is made again."""
        self._end(self._connection)
        self.connect_soon()

    def close(self) -> None:
        """The indexer is gone, or has no use for it."""
        self._connection.is_closed = True
        self._connection.is_up = False

    # What the indexer sees

    def _note_up(self, connection: Connection) -> None:
        raise NotImplementedError

    def _receive(self, connection: Connection, frames: Frames) -> None:
        raise NotImplementedError

    def _note_down(self, connection: Connection) -> None:
        raise NotImplementedError


class Subscription(Line):
    """An indexer has dialled the engine."""

    def __init__(self, network: "EngineNetwork", engine: SimulatedEngine, inbox: Inbox) -> None:
        super().__init__(network, engine)
        self.inbox = inbox

    def _note_up(self, connection: Connection) -> None:
        self.inbox.begin()
        self.inbox.wake()

    def _receive(self, connection: Connection, frames: Frames) -> None:
        self.inbox.put(frames)
        self.inbox.wake()

    def _note_down(self, connection: Connection) -> None:
        self.inbox.connected = False
        self.inbox.wake()


class DialledPort(Line):
    """An engine dials an indexer, one of those that listen: at each connection it may be another one, as behind a load balancer."""

    def __init__(self, network: "EngineNetwork", engine: SimulatedEngine, port: "SimulatedPort") -> None:
        super().__init__(network, engine)
        self.port = port

    def connect_soon(self) -> None:
        self._network.dial_soon(self.engine)

    def _note_up(self, connection: Connection) -> None:
        self.port.connect(connection)

    def _receive(self, connection: Connection, frames: Frames) -> None:
        self.port.receive(connection, frames)

    def _note_down(self, connection: Connection) -> None:
        self.port.disconnect(connection)


class SimulatedPort(Listening):
    """The product's port, but for its sockets."""

    def connect(self, connection: Connection) -> None:
        self._topics[connection] = set()  # type: ignore[index] # it has all that is used of a connection

    def receive(self, connection: Connection, frames: Frames) -> None:
        self._take(connection, [frames])  # type: ignore[arg-type]

    def disconnect(self, connection: Connection) -> None:
        self._forget(connection, DISCONNECTED)  # type: ignore[arg-type]
