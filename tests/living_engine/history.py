"""What an engine has published so far, by its own replay endpoint. It shares no code with the product."""

import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import zmq

from tests.waiting import wait_until

END = b"\xff" * 8
REPLY_TIMEOUT_MS = 10_000


class History:
    """Reads on from where it was. An engine publishes each step's events in the order of its steps, but a little after it has answered:
    only what is read here is known to be on its way to every subscriber.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.last: int | None = None
        self.stored_blocks = 0
        self.removed_blocks = 0
        self.clears = 0
        self.stored_tokens: list[list[int]] = []
        self._context = zmq.Context()

    def close(self) -> None:
        self._context.destroy(linger=0)

    def read(self) -> None:
        """Ask for all that came since. Fails when the engine does not answer."""
        with self._context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.connect(self.endpoint)
            dealer.send_multipart([b"", struct.pack(">Q", 0 if self.last is None else self.last + 1)])
            while True:
                assert dealer.poll(REPLY_TIMEOUT_MS), f"{self.endpoint} does not answer"
                *_, number, payload = dealer.recv_multipart()
                if number == END:
                    return
                self._take(int.from_bytes(number, "big"), payload)

    def wait_for_blocks(self, count: int) -> None:
        """Wait until so many blocks were announced as stored in all, exactly."""

        def announced() -> bool:
            self.read()
            return self.stored_blocks >= count

        wait_until(announced, what=f"{count} blocks announced")
        assert self.stored_blocks == count, f"{self.stored_blocks} blocks announced where {count} were due"

    def wait_for_tokens(self, tokens: Sequence[int]) -> None:
        """Wait until an event with just these tokens was announced."""

        def announced() -> bool:
            self.read()
            return list(tokens) in self.stored_tokens

        wait_until(announced, what="the tokens announced")

    def _take(self, number: int, payload: bytes) -> None:
        assert number == (0 if self.last is None else self.last + 1), f"batch {number} follows {self.last}"
        self.last = number
        _, events, _ = msgspec.msgpack.decode(payload)
        for event in events:
            self._take_event(event)

    def _take_event(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "BlockStored":
                self.stored_blocks += len(event["block_hashes"])
                self.stored_tokens.append(event["token_ids"])
            case "BlockRemoved":
                self.removed_blocks += len(event["block_hashes"])
            case "AllBlocksCleared":
                self.clears += 1
