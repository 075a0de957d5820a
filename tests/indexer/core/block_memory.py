"""What blocks of one engine cost in memory, in the stream's state and in the index of the same process."""

import gc
import random
import tracemalloc
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from indexer.config.settings import Settings
from indexer.core.events import Event, Removed, Stored, Tier
from indexer.core.names import StreamKey
from indexer.core.stream_state import StreamState
from indexer.limits import StateLimits
from scorer_api.index.view import View

BLOCK_SIZE = 16
PER_EVENT = 64
STREAM = StreamKey("m", "pod", 0)


class BlockMemory:
    """`with BlockMemory.measured() as blocks:` allocations count. `bytes`: what is allocated since."""

    def __init__(self, **limits: int) -> None:
        self._view = View(Settings())
        self._view.open(STREAM)
        self.state = StreamState(STREAM.model, "", limits=StateLimits(**limits))
        self._random = random.Random(1)
        self._on_gpu: deque[list[int]] = deque()
        self._parent: int | None = None
        gc.collect()
        self._before = tracemalloc.get_traced_memory()[0]

    @classmethod
    @contextmanager
    def measured(cls, **limits: int) -> Iterator["BlockMemory"]:
        tracemalloc.start()
        try:
            yield cls(**limits)
        finally:
            tracemalloc.stop()

    @property
    def bytes(self) -> int:
        """Without what this class itself needs: 8 bytes for each block on the gpu."""
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - self._before - 8 * PER_EVENT * len(self._on_gpu)

    def store(self, blocks: int) -> None:
        """So many new blocks on the gpu, as events announce them."""
        for _ in range(0, blocks, PER_EVENT):
            hashes = [self._random.getrandbits(64) for _ in range(PER_EVENT)]
            self._apply(self._stored(hashes, Tier.GPU, self._parent))
            self._parent = hashes[-1]
            self._on_gpu.append(hashes)

    def lose_track(self) -> None:
        """Blocks so far are neither evicted nor offloaded any more, and their names cost nothing here."""
        self._on_gpu.clear()

    def offload(self) -> None:
        """A copy below the gpu of each block on it."""
        for hashes in self._on_gpu:
            self._apply(self._stored(hashes, Tier.CPU, None))

    def evict(self, blocks: int) -> None:
        """The oldest blocks leave the gpu."""
        for _ in range(0, blocks, PER_EVENT):
            self._apply(Removed(self._on_gpu.popleft(), Tier.GPU, 0))

    def _stored(self, hashes: list[int], tier: Tier, parent: int | None) -> Stored:
        tokens = self._random.randbytes(4 * BLOCK_SIZE * len(hashes)) if tier is Tier.GPU else b""
        return Stored(list(hashes), parent, tokens, BLOCK_SIZE, tier, None, None, announces_extra_keys=True, group=0, kind=None)

    def _apply(self, event: Event) -> None:
        self._view.append(STREAM, self.state.shape, self.state.apply([event], 0.0))
