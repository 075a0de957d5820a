"""An engine for measurements: a PUB socket that drops nothing, alone in a process of its own."""

import time
from multiprocessing.connection import Connection

import zmq
from msgspec import Struct

from bench.child import Child
from bench.workload import MODEL, Payload, Plan, payloads

SUBSCRIBED_TIMEOUT_MS = 30_000


class Published(Struct, frozen=True):
    """When publishing began (time.monotonic, one clock for all processes), the last number sent, the blocks stored so far, and those still held."""

    started_s: float
    sequence: int
    blocks: int
    held: int


class Socket:
    """The publishing end of a stream. It says whether anybody listens: an XPUB."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._pub = self._context.socket(zmq.XPUB)
        self._pub.sndhwm = 0
        self._pub.setsockopt(zmq.XPUB_VERBOSE, 1)  # each subscription counts
        self.port = self._pub.bind_to_random_port("tcp://127.0.0.1")
        self.next_number = 0
        self.blocks = self.held = 0

    def wait_subscribed(self, subscribers: int = 1) -> None:
        """What is published earlier is lost."""
        for _ in range(subscribers):
            if not self._pub.poll(SUBSCRIBED_TIMEOUT_MS):
                raise TimeoutError("nobody subscribed")
            self._pub.recv()

    def publish(self, payload: Payload) -> None:
        self._pub.send_multipart([b"", self.next_number.to_bytes(8, "big"), payload.data], copy=True)
        self.next_number += 1
        self.blocks += payload.blocks
        self.held += payload.blocks - payload.removed

    def close(self) -> None:
        self._context.destroy(linger=0)


def spec(pod: str, port: int) -> str:
    """What to give to --engine."""
    return f"pod={pod},model={MODEL},events=tcp://127.0.0.1:{port}"


class Publisher(Child):
    """`with Publisher(pod, plan) as publisher:` its payloads are prepared; `publish` sends them as fast as it can."""

    def __init__(self, pod: str, plan: Plan) -> None:
        super().__init__(f"publisher {pod}", _publish_when_told, plan)
        self.pod = pod

    def wait_prepared(self) -> str:
        """The engine's spec, once its payloads are prepared."""
        return spec(self.pod, self.connection.recv())

    def start(self, share: float = 1.0) -> None:
        """Publish this share of the payloads, the next ones."""
        self.connection.send(share)

    def finish(self) -> Published:
        """Wait until they are handed to the socket."""
        published: Published = self.connection.recv()
        return published


def _publish_when_told(connection: Connection, plan: Plan) -> None:
    prepared = list(payloads(plan))
    socket = Socket()
    connection.send(socket.port)
    due = 0.0
    try:
        while True:
            due += connection.recv() * len(prepared)
            if not socket.next_number:
                socket.wait_subscribed()
            started_s = time.monotonic()
            for payload in prepared[socket.next_number : round(due)]:
                socket.publish(payload)
            connection.send(Published(started_s, socket.next_number - 1, socket.blocks, socket.held))
    except EOFError:
        socket.close()
