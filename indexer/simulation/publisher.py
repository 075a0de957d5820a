"""An engine's two sockets, for engines without a model: PUB for its events, ROUTER for replays."""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from socket import gethostname

import zmq
import zmq.asyncio

LOOPBACK = "127.0.0.1"
EVERY_ADDRESS = ("0.0.0.0", "*", "::")  # noqa: S104 - what a user may ask for, never a default
END = b"\xff" * 8
NUMBER_BYTES = 8
# In place of a number: all that the engine holds now (github.com/vllm-project/vllm/pull/50134).
# The same asks an endpoint for snapshots alone (57789).
SNAPSHOT = b"snapshot"
PUBLISHER_ID_BYTES = 16
# After a restart a port is free only when libzmq has closed the former socket, which it does in its own thread.
REBIND_S = 5.0
REBIND_POLL_S = 0.02


class Publisher:
    """PUB and ROUTER on ports of one address, free ones where 0 is given, with a bounded history for replays.

    `with_replay`: whether replays are answered. `snapshot_port`: of another ROUTER, for snapshots alone; None for none. `await open()`, then
    `serve()` in a task. `open` raises zmq.ZMQError for an address that is not this machine's, or a port that is taken.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        host: str,
        events_port: int,
        replay_port: int,
        *,
        history_max: int,
        with_replay: bool = True,
        snapshot_port: int | None = None,
    ) -> None:
        self._host = host
        # It sends what a PUB sends, and reports subscriptions.
        self._pub = context.socket(zmq.XPUB)
        self._router = context.socket(zmq.ROUTER)
        self._pub.sndhwm = 0
        self._router.sndhwm = 0
        self._with_replay = with_replay
        self._snapshots = context.socket(zmq.ROUTER)
        self.snapshot_port = snapshot_port
        self.publisher_id = secrets.token_bytes(PUBLISHER_ID_BYTES)
        """What the snapshots at an endpoint of their own, and the batches beside them, say of this process."""
        self.events_port = events_port
        self.replay_port = replay_port
        self.subscribed = asyncio.Event()
        self.snapshot: Callable[[], tuple[bytes, bytes, Sequence[bytes]]] | None = None
        """The topic, the next number, and payloads that make all that is held now, as the endpoint that is asked sends them; None for an engine that
        knows no snapshots."""
        self._history: deque[tuple[bytes, bytes, bytes]] = deque(maxlen=history_max)

    async def open(self, *, is_restart: bool = False) -> None:
        """Bind both sockets. `is_restart`: former sockets had the ports, and may still be closing them."""
        wait_s = REBIND_S if is_restart else 0
        self.events_port = await _bind(self._pub, self._host, self.events_port, wait_s)
        if self._with_replay:
            self.replay_port = await _bind(self._router, self._host, self.replay_port, wait_s)
        if self.snapshot_port is not None:
            self.snapshot_port = await _bind(self._snapshots, self._host, self.snapshot_port, wait_s)

    def close(self) -> None:
        """Idempotent."""
        self._pub.close()
        self._router.close()
        self._snapshots.close()

    def add_to_history(self, topic: bytes, number: bytes, payload: bytes) -> None:
        """Keep a batch for replays."""
        self._history.append((topic, number, payload))

    async def publish(self, frames: Sequence[bytes]) -> None:
        """Send a message to all present subscribers."""
        await self._pub.send_multipart(frames)

    async def serve(self) -> None:
        """Answer replays and notice subscriptions, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._notice_subscriptions(), name="subscriptions")
            if self._with_replay:
                tasks.create_task(self._serve_replays(), name="replays")
            if self.snapshot_port is not None:
                tasks.create_task(self._serve_snapshots(), name="snapshots")

    async def _notice_subscriptions(self) -> None:
        while True:
            if (await self._pub.recv())[:1] == b"\x01":
                self.subscribed.set()
            else:
                self.subscribed.clear()

    async def _serve_replays(self) -> None:
        while True:
            frames = await self._router.recv_multipart()
            if len(frames) != 3 or len(frames[2]) != NUMBER_BYTES:
                continue
            for topic, number, payload in self._asked(frames[2]):
                await self._router.send_multipart([frames[0], b"", topic, number, payload])
            await self._router.send_multipart([frames[0], b"", b"", END, b""])

    async def _serve_snapshots(self) -> None:
        while True:
            client, *frames = await self._snapshots.recv_multipart()
            if frames != [b"", SNAPSHOT] or self.snapshot is None:
                continue
            _, number, payloads = self.snapshot()
            last = int.from_bytes(number, "big") - 1
            await self._snapshots.send_multipart([client, b"", last.to_bytes(NUMBER_BYTES, "big", signed=True), self.publisher_id, *payloads])

    def _asked(self, content: bytes) -> Iterable[tuple[bytes, bytes, bytes]]:
        if content != SNAPSHOT or self.snapshot is None or self.snapshot_port is not None:
            return self._since(content)
        topic, number, payloads = self.snapshot()
        return [(topic, number, payload) for payload in payloads]

    def _since(self, start: bytes) -> Iterable[tuple[bytes, bytes, bytes]]:
        return [item for item in self._history if item[1] >= start]


async def _bind(socket: zmq.asyncio.Socket, host: str, port: int, wait_s: float) -> int:
    socket.ipv6 = ":" in host
    at = f"tcp://{in_url(host)}"
    if not port:
        return socket.bind_to_random_port(at)
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            socket.bind(f"{at}:{port}")
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or time.monotonic() > deadline_s:
                raise
            await asyncio.sleep(REBIND_POLL_S)
        else:
            return port


def dial_host(host: str) -> str:
    """The host that others connect to for a socket that listens at `host`: the machine's name for a socket at every address."""
    return gethostname() if host in EVERY_ADDRESS else in_url(host)


def in_url(host: str) -> str:
    """The host as endpoints and URLs have it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
