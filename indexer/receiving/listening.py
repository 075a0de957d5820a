"""A port at which engines dial us.

There is one per data-parallel rank, the rank's port. Who speaks is in the topic, `kv@<pod>@<model>`. A topic belongs to the connection that brought
it first, as long as that is up.
"""

import errno
import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from msgspec import Struct

from indexer.limits import ReceiveLimits
from indexer.receiving.addresses import host_and_port
from indexer.receiving.connection import DISCONNECTED, Connection
from indexer.receiving.inbox import Inbox
from indexer.receiving.reactor import Reactor
from indexer.receiving.room import Room

# Pods that may be known at one port: publishers choose their topics, and each one costs an inbox.
TOPICS_MAX = 4_096
# Connections at one port; one for each of those pods, and as many that say nothing.
CONNECTIONS_MAX = 2 * TOPICS_MAX
NAME_LENGTH_MAX = 512
BACKLOG = 1_024
# Taken at a stretch.
ACCEPTED_MAX = 64
# Pause where there is no descriptor for another connection.
AFTER_FAILURE_S = 0.1


class Announced(Struct, frozen=True, eq=False):
    """A pod that dialled us and was not known. `host`: the address that it came from."""

    pod: str
    model: str
    rank: int
    host: str
    inbox: Inbox


class _Publisher(Struct):
    """The connection that publishes under a topic, None while there is none. Messages of a blocked publisher are dropped."""

    inbox: Inbox
    connection: Connection | None = None
    is_blocked: bool = False


class Listening:
    """Binds one rank's port and sorts what comes into the pods' inboxes. Used by the receiving thread only.

    `announce` is called for each pod that is not known; `refuse` with the reason and number of messages of no pod; `changed` with inboxes.
    """

    def __init__(
        self,
        reactor: Reactor,
        endpoint: str,
        rank: int,
        limits: ReceiveLimits,
        *,
        room: Room,
        announce: Callable[[Announced], None],
        refuse: Callable[[str, int], None],
        changed: Callable[[Inbox], None],
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._limits = limits
        self._room = room
        self._announce = announce
        self._refuse = refuse
        self._changed = changed
        self._publishers: dict[bytes, _Publisher] = {}
        self._topics: dict[Connection, set[bytes]] = {}
        """Every connection, and the topics that it has brought."""
        self._socket: socket.socket | None = None
        self.rank = rank

    def open(self) -> None:
        """Raises OSError for an endpoint that cannot be bound."""
        self._socket = _bound(self._endpoint)
        self._socket.setblocking(False)
        self._reactor.watch(self._socket, self._accept)

    def close(self) -> None:
        """Idempotent."""
        if self._socket is not None:
            self._reactor.forget(self._socket)
            self._socket.close()
            self._socket = None
        for connection in tuple(self._topics):
            connection.close()
        self._topics.clear()

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

    # Connections

    def _accept(self) -> None:
        listener = self._socket
        if listener is None:
            return
        for _ in range(ACCEPTED_MAX):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._reactor.forget(listener)
                    self._reactor.at(time.monotonic() + AFTER_FAILURE_S, self._accept_again)
                    return
                continue  # it is gone already
            if len(self._topics) >= CONNECTIONS_MAX:
                sock.close()
                continue
            connection = Connection(self._reactor, sock, b"", self._limits, self._room, began=self._begin, take=self._take, ended=self._forget)
            self._topics[connection] = set()

    def _accept_again(self) -> None:
        if self._socket is not None:
            self._reactor.watch(self._socket, self._accept)

    def _begin(self, connection: Connection) -> None:
        """Who it is is known once it publishes."""

    def _forget(self, connection: Connection, reason: str) -> None:
        """A connection went down: its pods are not connected any more."""
        for topic in self._topics.pop(connection, ()):
            publisher = self._publishers.get(topic)
            if publisher is not None and publisher.connection is connection:
                publisher.connection = None
                publisher.inbox.connected = False
                publisher.inbox.error = DISCONNECTED
                self._changed(publisher.inbox)

    # Messages

    def _take(self, connection: Connection, messages: list[list[bytes]]) -> bool:
        refused: Counter[str] = Counter()
        is_too_much = False
        for frames in messages:
            inbox = self._sort(connection, frames, refused)
            if inbox is not None:
                dropped = inbox.dropped
                inbox.put(frames)
                is_too_much |= inbox.dropped > dropped
        for reason, count in refused.items():
            self._refuse(reason, count)
        return is_too_much or bool(refused)

    def _sort(self, connection: Connection, frames: list[bytes], refused: Counter[str]) -> Inbox | None:
        """The inbox that a message belongs into. `refused`: to be added to where there is none."""
        topic = frames[0]
        publisher = self._publishers.get(topic)
        if publisher is None:
            publisher = self._new_publisher(topic, connection)
            if publisher is None:
                refused["topic"] += 1
                return None
        if publisher.is_blocked:
            refused["topic_claimed"] += 1
            return None
        if publisher.connection is None:
            publisher.connection = connection
            self._topics[connection].add(topic)
            publisher.inbox.begin()
        self._changed(publisher.inbox)
        if publisher.connection is connection:
            return publisher.inbox
        refused["topic_claimed"] += 1
        publisher.inbox.error = f"{str(topic, 'utf-8', 'replace')} is claimed by a second publisher"
        return None

    def _new_publisher(self, topic: bytes, connection: Connection) -> _Publisher | None:
        """A topic that was not known: of a new pod, or of none."""
        named = _pod_and_model(topic)
        if named is None or len(self._publishers) >= TOPICS_MAX:
            return None
        publisher = self._publishers[topic] = _Publisher(Inbox(self._limits, room=self._room))
        self._announce(Announced(*named, self.rank, _plain_address(connection.peer_host), publisher.inbox))
        return publisher


def _bound(endpoint: str) -> socket.socket:
    """A listening socket; `*` and `[::]` are all addresses of both families. Raises OSError."""
    found = host_and_port(endpoint)
    if found is None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    host, port = found
    if host in ("*", "::") and socket.has_dualstack_ipv6():
        with suppress(OSError):
            return _listener(socket.AF_INET6, ("::", port), is_dual=True)
    if host == "*":
        return _listener(socket.AF_INET, ("", port))
    family, *_, at = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return _listener(family, at)


def _listener(family: int, at: tuple[str | int | bytes, ...], *, is_dual: bool = False) -> socket.socket:
    """Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not is_dual)
        sock.bind(at)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


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
