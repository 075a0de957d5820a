"""What an engine has published so far, by its own replay endpoint. It shares no code with the product."""

import struct
from collections import Counter
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

    def __init__(self, endpoint: str, block_size: int) -> None:
        self.endpoint = endpoint
        self._block_size = block_size
        self.last: int | None = None
        self.stored_blocks = 0
        self.removed_blocks = 0
        self.clears = 0
        self.stored_tokens: list[list[int]] = []
        self._hashes: dict[tuple[int | None, tuple[int, ...], str | None], int] = {}
        """Hash of the block before, tokens and salt → hash of the block."""
        self._held: Counter[tuple[str, int]] = Counter()
        """Medium and hash → copies that the group of full attention has there."""
        self._full_group: int | None = None
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

    def held_blocks(self, tokens: Sequence[int], *, medium: str | None = None, salt: str | None = None) -> int:
        """How many whole blocks of these tokens, from the first, the group of full attention has in this medium, or in any."""
        size, count = self._block_size, 0
        parent: int | None = None
        for start in range(0, len(tokens) - size + 1, size):
            found = self._hash_of(parent, tokens[start : start + size], salt if parent is None else None)
            if found is None or not any(self._held[each, found] for each in ((medium,) if medium else ("GPU", "CPU"))):
                break
            parent, count = found, count + 1
        return count

    def wait_for_last_block(self, tokens: Sequence[int], medium: str, *, salt: str | None = None) -> None:
        """Wait until the last whole block of these tokens is held in this medium."""

        def is_held() -> bool:
            self.read()
            size = self._block_size
            found: int | None = None
            for start in range(0, len(tokens) - size + 1, size):
                found = self._hash_of(found, tokens[start : start + size], None if start else salt)
                if found is None:
                    return False
            return found is None or self._held[medium, found] > 0

        wait_until(is_held, what=f"the last of {len(tokens)} tokens announced in {medium}")

    def _hash_of(self, parent: int | None, tokens: Sequence[int], salt: str | None) -> int | None:
        return self._hashes.get((parent, tuple(tokens), salt))

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
                self._store(event)
            case "BlockRemoved":
                self.removed_blocks += len(event["block_hashes"])
                if event["group_idx"] == self._full_group:
                    self._held.subtract((event["medium"], each) for each in event["block_hashes"])
            case "AllBlocksCleared":
                self.clears += 1
                for medium, each in list(self._held):
                    if medium == "GPU":
                        del self._held[medium, each]

    def _store(self, event: dict[str, Any]) -> None:
        if event.get("kv_cache_spec_kind") == "full_attention":
            self._full_group = event["group_idx"]
        if event["group_idx"] != self._full_group:
            return
        parent, tokens = event.get("parent_block_hash"), event["token_ids"]
        for number, each in enumerate(event["block_hashes"]):
            self._held[event["medium"], each] += 1
            if tokens:
                extra = event["extra_keys"][number] if event.get("extra_keys") else None
                block = tuple(tokens[number * self._block_size : (number + 1) * self._block_size])
                self._hashes[parent, block, str(extra[0]) if extra else None] = each
                parent = each
