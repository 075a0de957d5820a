"""One engine: it publishes batches and answers replays, with every fault that a real one can have."""

import struct
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from msgspec import Struct

from tests.simulation.dialects import Dialect

END = b"\xff" * 8
TOPIC = b"kv@pod"

Frames = list[bytes]


class ReplayFault(Enum):
    """What goes wrong with one answer."""

    CUT = auto()
    """It stops after some replies, without an end marker."""
    HOLE = auto()
    """One of the replies is missing."""
    NO_END = auto()
    """The end marker is missing."""
    MUTE = auto()
    """There is none."""


class PlannedFault(Struct, frozen=True):
    """`at`: after, or in place of, so many replies."""

    fault: ReplayFault
    at: int = 0


class SimulatedEngine:
    """What `tests.workload.Publisher` drives. `on_publish` and `on_change` tell the network of a message, and that it lives or died."""

    def __init__(self, dialect: Dialect, events: str, replay: str | None, history_max: int, topic: bytes = TOPIC, *, dials: bool = False) -> None:
        """`dials`: it connects to one of the indexers, which listen, and none of them to it."""
        self.dialect = dialect
        self.topic = topic
        self.dials = dials
        self.events = events
        self.replay = replay
        self.host = events.removeprefix("tcp://").partition(":")[0]
        self.history_max = history_max
        self.is_alive = False
        self.life = 0
        self.faults: deque[PlannedFault] = deque()
        self.history: deque[tuple[int, bytes]] = deque(maxlen=history_max)
        self.next_number = 0
        self.is_taken_for_former = False
        """Whether a subscriber heard of this life first the number after one that it may have heard of a former life."""
        self._heard: set[int] = set()
        self._heard_before: set[int] = set()
        self.on_publish: Callable[[Frames], None] = lambda frames: None
        self.on_change: Callable[[], None] = lambda: None

    @property
    def is_heard_by_batches(self) -> bool:
        """Whether nobody can know of a connection to it before its first batch."""
        return self.replay is None or self.dials

    def start(self) -> None:
        """A new life, without any history."""
        self.is_alive = True
        self.life += 1
        self.history.clear()
        self.next_number = self.dialect.first_number
        self.is_taken_for_former = False
        self._heard_before |= self._heard
        self._heard.clear()
        self.on_change()

    def kill(self) -> None:
        if self.is_alive:
            self.is_alive = False
            self.on_change()

    def note_heard(self, number: int, *, is_first: bool) -> None:
        """A batch of this life arrived. `is_first`: at who had heard none of it."""
        self.is_taken_for_former |= is_first and number - 1 in self._heard_before
        self._heard.add(number)

    def publish(self, *events: Any) -> int:
        """One batch. Returns its number."""
        number, payload = self.next_number, self.dialect.payload(events)
        self.next_number += 1
        self.history.append((number, payload))
        self.on_publish([self.topic, struct.pack(">Q", number), payload])
        return number

    def answer(self, start: int) -> list[Frames]:
        """The replies to one request."""
        middle = [b"", self.topic] if self.dialect.with_topic else [b""]
        replies = [[*middle, struct.pack(">Q", number), payload] for number, payload in self.history if number >= start]
        end = [*([b"", b""] if self.dialect.with_topic else [b""]), END, b""]
        if not self.faults:
            return [*replies, end]
        planned = self.faults.popleft()
        match planned.fault:
            case ReplayFault.CUT:
                return replies[: planned.at]
            case ReplayFault.HOLE:
                return [*replies[: planned.at], *replies[planned.at + 1 :], end]
            case ReplayFault.NO_END:
                return replies
            case ReplayFault.MUTE:
                return []
