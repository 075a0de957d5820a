"""A SUB socket that binds: engines dial us.

There is one per data-parallel rank, the rank's port. Who speaks is in the topic, `kv@<pod>@<model>`; over which connection, in the frame's file
descriptor, which the monitor also reports for a disconnect. A topic belongs to the connection that brought it first, as long as that is up.
"""

from collections.abc import Callable, Iterable

import zmq
from msgspec import Struct

from indexer.limits import ReceiveLimits
from indexer.receiving.inbox import Inbox
from indexer.receiving.subscription import TURN_MAX, Context, SubSocket

# Pods that may be known at one port: publishers choose their topics, and each one costs an inbox.
TOPICS_MAX = 4_096
NAME_LENGTH_MAX = 512


class Announced(Struct, frozen=True, eq=False):
    """A pod that dialled us and was not known. `host`: the address that it came from."""

    pod: str
    model: str
    rank: int
    host: str
    inbox: Inbox


class _Publisher(Struct):
    """The connection that publishes under a topic: its file descriptor, None while there is none. Messages of a blocked publisher are dropped."""

    inbox: Inbox
    descriptor: int | None = None
    is_blocked: bool = False


class Listening(SubSocket):
    """Binds one rank's port and sorts what comes into the pods' inboxes.

    `announce` is called, in the receiving thread, for each pod that is not known; `refuse` with the reason for each message that belongs to no pod.
    """

    def __init__(
        self,
        context: Context,
        endpoint: str,
        rank: int,
        limits: ReceiveLimits,
        announce: Callable[[Announced], None],
        refuse: Callable[[str], None],
    ) -> None:
        super().__init__(context, endpoint, limits)
        # Every address means those of both families.
        self._is_ipv6 = self._is_ipv6 or endpoint.startswith("tcp://*:")
        self._announce = announce
        self._refuse = refuse
        self._publishers: dict[bytes, _Publisher] = {}
        self._changed: set[Inbox] = set()
        self.rank = rank

    def _attach(self, sub: "zmq.Socket[bytes]") -> None:
        sub.subscribe(b"")
        sub.bind(self._endpoint)

    def expect(self, pod: str, model: str, inbox: Inbox) -> None:
        """Have what this pod publishes put into this inbox."""
        self._publishers[f"kv@{pod}@{model}".encode()] = _Publisher(inbox)

    def block(self, inbox: Inbox) -> None:
        """Stop listening to the pod that fills this inbox: another one has its name."""
        for publisher in self._publishers.values():
            if publisher.inbox is inbox:
                publisher.is_blocked = True
                inbox.clear()

    def unblock(self) -> None:
        """Let the blocked ones announce themselves again."""
        self._publishers = {topic: publisher for topic, publisher in self._publishers.items() if not publisher.is_blocked}

    def remove(self, inbox: Inbox) -> None:
        """Forget whose inbox this is. Idempotent."""
        for topic in [topic for topic, publisher in self._publishers.items() if publisher.inbox is inbox]:
            del self._publishers[topic]
        inbox.connected = False

    def take(self) -> Iterable[Inbox]:
        self._changed = set()
        for event, descriptor in self._events():
            if event == zmq.EVENT_DISCONNECTED:
                self._receive(None)
                self._part(descriptor)
        self._receive(TURN_MAX)
        return self._changed

    def _part(self, descriptor: int) -> None:
        """A connection went down: its pods are not connected any more."""
        for publisher in self._publishers.values():
            if publisher.descriptor == descriptor:
                publisher.descriptor = None
                publisher.inbox.connected = False
                publisher.inbox.error = "disconnected"
                self._changed.add(publisher.inbox)

    def _receive(self, turn_max: int | None) -> None:
        assert self.socket is not None, "what listens is open"
        count = 0
        try:
            while turn_max is None or count < turn_max:
                self._sort(self.socket.recv_multipart(zmq.NOBLOCK, copy=False))
                count += 1
        except zmq.Again:
            pass

    def _sort(self, frames: "list[zmq.Frame]") -> None:
        topic = frames[0].bytes
        descriptor = int(frames[0].get(zmq.SRCFD))
        publisher = self._publishers.get(topic)
        if publisher is None:
            publisher = self._new_publisher(topic, _plain_address(str(frames[0].get("Peer-Address"))))
            if publisher is None:
                self._refuse("topic")
                return
        if publisher.is_blocked:
            self._refuse("topic_claimed")
            return
        if publisher.descriptor is None:
            publisher.descriptor = descriptor
            publisher.inbox.begin()
        if publisher.descriptor == descriptor:
            publisher.inbox.put([frame.bytes for frame in frames])
        else:
            self._refuse("topic_claimed")
            publisher.inbox.error = f"{str(topic, 'utf-8', 'replace')} is claimed by a second publisher"
        self._changed.add(publisher.inbox)

    def _new_publisher(self, topic: bytes, host: str) -> _Publisher | None:
        """A topic that was not known: of a new pod, or of none."""
        named = _pod_and_model(topic)
        if named is None or len(self._publishers) >= TOPICS_MAX:
            return None
        publisher = self._publishers[topic] = _Publisher(Inbox(self._limits))
        self._announce(Announced(*named, self.rank, host, publisher.inbox))
        return publisher


def _plain_address(host: str) -> str:
    """The address of a peer. A socket of both families has IPv4 addresses in their IPv6 form."""
    return host.removeprefix("::ffff:") if "." in host else host


def _pod_and_model(topic: bytes) -> tuple[str, str] | None:
    """`kv@<pod>@<model>`, split at the first two @: a model's name may hold more."""
    try:
        head, pod, model = topic.decode().split("@", 2)
    except (UnicodeDecodeError, ValueError):
        return None
    is_named = head == "kv" and 0 < len(pod) <= NAME_LENGTH_MAX and 0 < len(model) <= NAME_LENGTH_MAX
    return (pod, model) if is_named else None
