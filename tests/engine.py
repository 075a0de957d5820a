"""An engine for tests: real PUB and ROUTER sockets, and every fault that a real one can have.

It shares no code with the product: what it sends is written here from docs/explanation/wire-format.md.
"""

import struct
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec
import zmq

from tests.ports import HIGHEST, LOWEST

END = b"\xff" * 8
BLOCK_SIZE = 4


def stored(
    hashes: Sequence[int | bytes], tokens: Sequence[int], parent: int | bytes | None = None, *, block_size: int = BLOCK_SIZE, **fields: Any
) -> dict[str, Any]:
    """A BlockStored as vLLM 0.26 sends it."""
    event = {"type": "BlockStored", "block_hashes": list(hashes), "parent_block_hash": parent, "token_ids": list(tokens), "block_size": block_size}
    event |= {"lora_id": None, "medium": "GPU", "lora_name": None, "extra_keys": [None] * len(hashes), "group_idx": 0}
    return {**event, "kv_cache_spec_kind": "full_attention", **fields}


def removed(hashes: Sequence[int | bytes], **fields: Any) -> dict[str, Any]:
    """A BlockRemoved as vLLM 0.26 sends it."""
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU", "group_idx": 0, **fields}


def cleared() -> dict[str, Any]:
    return {"type": "AllBlocksCleared"}


def batch(events: Iterable[Any], rank: int | None = 0) -> bytes:
    return msgspec.msgpack.encode([time.time(), list(events), rank])


class Engine:
    """One publisher process's sockets. `kill` and `start` make a new life on the same ports, with an empty history.

    `dials`: it connects its PUB to this port instead of binding one. `host`: its address, without brackets. Faults: `mute` leaves replay
    requests unanswered; `with_marker` off sends no end marker; `reply_count_max` cuts each reply short; `lost_replies` are numbers left out of
    the next answer, as by a high-water mark; `history_max` batches are retained.

    `snapshot`: what a request for a snapshot is answered with, payloads; None for an engine that knows no such request. `snapshot_resume`: the number
    that each part names in place of the next one. `with_snapshot_marker` off leaves out its end. `snapshots_asked`: how often one was asked for.

    `with_snapshot_port`: there is another socket that is asked for snapshots, which answers `whole_snapshot`, payloads, in one message; None where
    there is none at present. Each batch then ends with what identifies the process.
    """

    def __init__(
        self,
        *,
        with_replay: bool = True,
        with_topic_in_replies: bool = True,
        history_max: int = 10_000,
        topic: bytes = b"",
        dials: int | None = None,
        host: str = "127.0.0.1",
        with_snapshot_port: bool = False,
    ) -> None:
        self.with_replay = with_replay
        self.with_topic_in_replies = with_topic_in_replies
        self.history_max = history_max
        self.topic = topic
        self.dials = dials
        self.host = f"[{host}]" if ":" in host else host
        self.mute = False
        self.with_marker = True
        self.reply_count_max: int | None = None
        self.lost_replies: set[int] = set()
        self.asked: list[int] = []
        self.snapshot: list[bytes] | None = None
        self.snapshot_resume: list[int] | None = None
        self.with_snapshot_marker = True
        self.snapshots_asked = 0
        self.with_snapshot_port = with_snapshot_port
        self.whole_snapshot: list[bytes] | None = None
        self.publisher_id = b""
        self.events_port = self.replay_port = self.snapshot_port = 0
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    def start(self, next_number: int = 0) -> Self:
        """A new life, whose first batch has this number."""
        self.next_number = next_number
        self._subscribed = 0
        self.history: list[tuple[int, bytes]] = []
        self._context = zmq.Context()
        # What it sends is what a PUB sends, and it tells of subscriptions.
        self._pub = self._context.socket(zmq.XPUB)
        self._pub.xpub_verbose = 1
        self._pub.sndhwm = 0
        self._pub.linger = 0
        self._pub.ipv6 = ":" in self.host
        if self.dials is None:
            self.events_port = _bind(self._pub, self.host, self.events_port)
        else:
            self._pub.connect(f"tcp://{self.host}:{self.dials}")
        self._stopping = threading.Event()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.sndhwm = 0
        self._router.linger = 0
        self._router.ipv6 = ":" in self.host
        if self.with_replay:
            self.replay_port = _bind(self._router, self.host, self.replay_port)
        self._snapshots = self._context.socket(zmq.ROUTER)
        self._snapshots.linger = 0
        if self.with_snapshot_port:
            self.publisher_id = uuid.uuid4().bytes
            self.snapshot_port = _bind(self._snapshots, self.host, self.snapshot_port)
        self._thread = threading.Thread(target=self._serve_replays, name="test engine", daemon=True)
        self._thread.start()
        return self

    @property
    def is_alive(self) -> bool:
        return self._context is not None

    def kill(self) -> None:
        """The process is gone, its ports and history with it. Idempotent."""
        if self._context is None:
            return
        self._stopping.set()
        self._thread.join()
        self._context.destroy(linger=0)
        self._context = None

    def spec(self, pod: str = "pod", model: str = "m", **more: object) -> str:
        """What to give to --engine."""
        words = [f"pod={pod}", f"model={model}", f"events=tcp://{self.host}:{self.events_port}"]
        if self.with_replay:
            words.append(f"replay=tcp://{self.host}:{self.replay_port}")
        return ",".join([*words, *(f"{key}={value}" for key, value in more.items())])

    def publish(self, *events: Any, is_lost: bool = False, is_forgotten: bool = False) -> int:
        """Publish one batch. `is_lost`: it never reaches a subscriber; `is_forgotten`: it is not in the history either."""
        payload = batch(events)
        if self.with_snapshot_port:
            payload = msgspec.msgpack.encode([*msgspec.msgpack.decode(payload), self.publisher_id])
        return self.publish_payload(payload, is_lost=is_lost, is_forgotten=is_forgotten)

    def publish_payload(self, payload: bytes, *, is_lost: bool = False, is_forgotten: bool = False) -> int:
        number = self.next_number
        self.next_number += 1
        if not is_forgotten:
            self.history.append((number, payload))
            del self.history[: -self.history_max]
        if not is_lost:
            self.send([self.topic, struct.pack(">Q", number), payload])
        return number

    def send(self, frames: Sequence[bytes]) -> None:
        """Publish any frames."""
        self._pub.send_multipart(frames)

    def subscriptions(self) -> int:
        """How many subscriptions came in this life so far."""
        while self._pub.poll(0):
            self._subscribed += self._pub.recv()[:1] == b"\x01"
        return self._subscribed

    def _serve_replays(self) -> None:
        while not self._stopping.is_set():
            self._serve_snapshots()
            if not self._router.poll(20):
                continue
            client, *frames = self._router.recv_multipart()
            if len(frames) != 2 or frames[0] or len(frames[1]) != 8:
                continue  # logged and never answered
            if frames[1] == b"snapshot":
                self.snapshots_asked += 1
                if self.snapshot is not None:
                    self._answer_snapshot(client, self.snapshot)
                    continue
            (start,) = struct.unpack(">Q", frames[1])
            self.asked.append(start)
            if not self.mute:
                self._answer(client, start)

    def _serve_snapshots(self) -> None:
        while self.with_snapshot_port and self._snapshots.poll(0):
            client, *frames = self._snapshots.recv_multipart()
            if frames != [b"", b"snapshot"]:
                continue
            self.snapshots_asked += 1
            if self.mute:
                continue
            last = -2 if self.whole_snapshot is None else self.next_number - 1
            head = [client, b"", struct.pack(">q", last), self.publisher_id]
            self._snapshots.send_multipart([*head, *(self.whole_snapshot or [])])

    def _answer_snapshot(self, client: bytes, parts: list[bytes]) -> None:
        resumes = self.snapshot_resume or [self.next_number] * len(parts)
        for resume, payload in zip(resumes, parts, strict=True):
            self._router.send_multipart([client, b"", self.topic, struct.pack(">Q", resume), payload])
        if self.with_snapshot_marker:
            self._router.send_multipart([client, b"", b"", END, b""])

    def _answer(self, client: bytes, start: int) -> None:
        middle = [b"", self.topic] if self.with_topic_in_replies else [b""]
        replies = [item for item in list(self.history) if item[0] >= start][: self.reply_count_max]
        for number, payload in replies:
            if number not in self.lost_replies:
                self._router.send_multipart([client, *middle, struct.pack(">Q", number), payload])
        self.lost_replies = set()
        if self.with_marker:
            self._router.send_multipart([client, *([b"", b""] if self.with_topic_in_replies else [b""]), END, b""])


def _bind(socket: "zmq.Socket[bytes]", host: str, port: int) -> int:
    if not port:
        return socket.bind_to_random_port(f"tcp://{host}", min_port=LOWEST, max_port=HIGHEST)
    deadline_s = time.monotonic() + 10
    while True:
        try:
            socket.bind(f"tcp://{host}:{port}")
        except zmq.ZMQError:  # the former life's socket is still being closed
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)
        else:
            return port
