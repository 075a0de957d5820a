"""An engine that publishes small batches as fast as it is told, alone in a process of its own.

`with Flood() as flood:` starts it; `flood.start(…)` has it publish, `flood.finish()` waits for that. It answers replays in between, as vLLM
does it: its history has a limit, and its sockets' high-water marks are vLLM's defaults. It shares no code with the product.
"""

import multiprocessing
import struct
import time
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

import msgspec
import zmq

from tests.engine import END, stored

HISTORY_MAX = 10_000
HWM = 100_000
# So many blocks it holds; each further one evicts the oldest.
POOL = 5_000
# After so many batches it looks whether anybody asks for a replay, and at the clock.
PACE = 64

spawning = multiprocessing.get_context("spawn")


def block_tokens(number: int) -> list[int]:
    return [number, 1, 2, 3]


class Flood:
    """Batch `i` stores block `i` and removes block `i - POOL`: whoever has applied all up to `n` holds the blocks `n - POOL + 1` to `n`."""

    def __enter__(self) -> Self:
        self._connection, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_run, args=(theirs,), name="flood", daemon=True)
        self._process.start()
        theirs.close()
        self.events_port, self.replay_port = self._connection.recv()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.close()
        self._process.join(20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def spec(self, pod: str, model: str = "m") -> str:
        """What to give to --engine."""
        return f"pod={pod},model={model},events=tcp://127.0.0.1:{self.events_port},replay=tcp://127.0.0.1:{self.replay_port}"

    def start(self, batches_per_s: float, duration_s: float) -> None:
        """Publish so many batches a second, or as many as it can; twice its history at least."""
        self._connection.send((batches_per_s, duration_s))

    def is_over(self) -> bool:
        return self._connection.poll(0)

    def finish(self) -> tuple[int, float]:
        """The number of the last batch, and how many seconds all of them took."""
        last, took_s = self._connection.recv()
        return last, took_s


class _Engine:
    def __init__(self) -> None:
        context = zmq.Context()
        self._pub = context.socket(zmq.PUB)
        self._router = context.socket(zmq.ROUTER)
        for bound in (self._pub, self._router):
            bound.sndhwm = HWM
            bound.linger = 0
        self.ports = self._pub.bind_to_random_port("tcp://127.0.0.1"), self._router.bind_to_random_port("tcp://127.0.0.1")
        self._history: list[bytes] = []
        self._next = 0
        # One event is encoded with values that are patched for each batch: encoding would cost more than sending.
        self._hash, self._tokens, self._gone = 2**63 + 1, 2**31 + 1, 2**63 + 2
        event = stored([self._hash], block_tokens(self._tokens))
        self._template = msgspec.msgpack.encode([time.time(), [event, {"type": "BlockRemoved", "block_hashes": [self._gone], "medium": "GPU"}], 0])

    def publish(self, batches_per_s: float, duration_s: float) -> tuple[int, float]:
        started_s = now_s = time.monotonic()
        sent = 0
        while now_s < started_s + duration_s or self._next <= 2 * HISTORY_MAX:
            if sent < (now_s - started_s) * batches_per_s:
                for _ in range(PACE):
                    self._publish_one()
                sent += PACE
                self.answer(0)
            else:
                self.answer(1)
            now_s = time.monotonic()
        return self._next - 1, now_s - started_s

    def _publish_one(self) -> None:
        number = self._next
        self._next += 1
        payload = self._template.replace(struct.pack(">Q", self._hash), struct.pack(">Q", number + 2**32), 1)
        payload = payload.replace(struct.pack(">I", self._tokens), struct.pack(">I", number), 1)
        payload = payload.replace(struct.pack(">Q", self._gone), struct.pack(">Q", number + 2**32 - POOL), 1)
        self._history.append(payload)
        if len(self._history) > 2 * HISTORY_MAX:
            del self._history[:-HISTORY_MAX]
        self._pub.send_multipart([b"", struct.pack(">Q", number), payload])

    def answer(self, timeout_ms: int) -> None:
        """Answer a replay, if anybody asks."""
        if not self._router.poll(timeout_ms):
            return
        client, _, asked = self._router.recv_multipart()
        (start,) = struct.unpack(">Q", asked)
        history = self._history[-HISTORY_MAX:]
        first = self._next - len(history)
        for number in range(max(start, first), self._next):
            self._router.send_multipart([client, b"", b"", struct.pack(">Q", number), history[number - first]])
        self._router.send_multipart([client, b"", b"", END, b""])


def _run(connection: Connection) -> None:
    engine = _Engine()
    connection.send(engine.ports)
    try:
        while True:
            if connection.poll(0):
                connection.send(engine.publish(*connection.recv()))
            engine.answer(5)
    except (EOFError, BrokenPipeError):
        return
