"""From Dynamo's local block hashes to block keys, learnt from what engines announce.

A local hash says nothing of the blocks before, and a block key cannot be computed from it. So each announced block is remembered under the key
before it and its local hash:

    chains   H(local hash; seeded with the key before it) → block key
    hashes   block key → local hash                                      for dumps
    salts    block key → cache salt, which only the first block of a prompt is announced with

What nobody holds any more is dropped while new blocks are learnt. Pure.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec
from xxhash import xxh3_64_intdigest

from indexer.core.block_keys import TOKEN_BYTES
from indexer.core.events import Event, Stored
from indexer.core.stream_state import StreamState
from scorer_api.compat.local_hashes import local_hashes, seed_of

ROOT = 0
# More blocks than are held, so that none is looked at before the index knows it.
SPARE_BLOCKS = 65_536

AreHeld = Callable[[int, Sequence[int]], list[bool]]
"""Whether anybody holds each of these block keys; the first argument is their block size."""


class HashChains:
    """Of one model. `are_held`, `blocks_held`: what the index holds now."""

    def __init__(self, are_held: AreHeld, blocks_held: Callable[[], int], spare_blocks: int = SPARE_BLOCKS) -> None:
        self._are_held = are_held
        self._blocks_held = blocks_held
        self._spare_blocks = spare_blocks
        self._chains: dict[int, int] = {}
        self._hashes: dict[int, int] = {}
        self._salts: dict[int, str] = {}
        self._learnt: deque[tuple[int, int]] = deque()
        """Each link of a chain, with the block size, the one that was looked at the longest ago first."""

    def __len__(self) -> int:
        return len(self._chains)

    def follow(self, events: Iterable[Event], state: StreamState) -> None:
        """Learn from a batch that `state` has applied already."""
        for event in events:
            if isinstance(event, Stored) and event.tokens and event.salt is None:
                self._learn(event, state)

    def _learn(self, event: Stored, state: StreamState) -> None:
        size, table = event.block_size, state.table
        if state.shape is None or state.shape.cut != (size, 0) or len(event.tokens) != len(event.hashes) * size * TOKEN_BYTES:
            return
        before = ROOT if event.parent is None else table.key_before(event.parent)
        if before is None:
            return
        salt, other_keys = _salt_of(event) if before == ROOT else (self._salts.get(before), bool(event.extra_keys))
        if other_keys:
            return  # an image or the like, which is part of the key and not of the tokens
        count = 0
        for engine_hash, local in zip(event.hashes, local_hashes(event.tokens, size, seed_of(event.lora_name, salt)), strict=True):
            block = table.known(engine_hash)
            if block is None:
                break
            link = _link(before, local)
            if link not in self._chains:
                self._learnt.append((size, link))
                count += 1
            before = block.key
            self._chains[link], self._hashes[before] = before, local
            if salt is not None:
                self._salts[before] = salt
        self._drop_unheld(2 * count)

    def _drop_unheld(self, count: int) -> None:
        """Look at this many of the oldest links, if there are many more than held blocks."""
        if len(self._learnt) <= self._spare_blocks + 2 * self._blocks_held():
            return
        links = [self._learnt.popleft() for _ in range(min(count, len(self._learnt)))]
        for size in {size for size, _ in links}:
            of_size = [link for each, link in links if each == size]
            for link, is_held in zip(of_size, self._are_held(size, [self._chains[link] for link in of_size]), strict=True):
                if is_held:
                    self._learnt.append((size, link))
                else:
                    key = self._chains.pop(link)
                    self._hashes.pop(key, None)
                    self._salts.pop(key, None)

    def keys_of(self, hashes: Sequence[int], before: int = ROOT) -> list[int]:
        """The block keys of local hashes, up to one that is not known. `before`: the key of the block before the first of them."""
        keys: list[int] = []
        for local in hashes:
            key = self._chains.get(_link(before, local))
            if key is None:
                break
            keys.append(key)
            before = key
        return keys

    def local_hash(self, key: int) -> int | None:
        """The local hash of a block; None where it is not known."""
        return self._hashes.get(key)


def _link(before: int, local: int) -> int:
    return xxh3_64_intdigest(local.to_bytes(8, "little"), before)


def _salt_of(event: Stored) -> tuple[str | None, bool]:
    """The cache salt of a prompt's first blocks, and whether they have extra keys besides."""
    if not event.extra_keys:
        return None, False
    own, salt = msgspec.msgpack.decode(event.extra_keys.get(0, b"\x92\x90\xc0"))
    return salt, bool(own) or event.extra_keys.keys() != {0}
