"""The documented formula for memory, against what blocks cost."""

import re
from pathlib import Path

from indexer.compiled import core
from indexer.limits import StateLimits
from tests.indexer.core.block_memory import BlockMemory

SIZING = Path("docs/operations.md").read_text()
BLOCKS = 16_000
# With the compiled core copies below the gpu take 0.6 to 0.7 of what is documented, which is for the Python.
SHARE_MIN = 0.5


def documented(pattern: str) -> list[int]:
    """Figures of docs/operations.md."""
    (figures,) = re.findall(pattern, SIZING)
    return [int(figure.replace(",", "")) for figure in ([figures] if isinstance(figures, str) else figures)]


(PER_COPY,) = documented(r"memory of `serve` without Redis \| \d+ MB \+ (\d+) B . copies")
(PER_REMOVED,) = documented(r"memory of what was evicted \| (\d+) B . ")
ON_GPU = SHARE_MIN * PER_COPY, PER_COPY
EVICTED = 0.6 * PER_REMOVED, PER_REMOVED
if core is not None:
    gpu_min, gpu_max, evicted_min, evicted_max = documented(r"a copy on the gpu takes (\d+) to (\d+) B .* evicted (\d+) to (\d+) B")
    ON_GPU, EVICTED = (gpu_min, gpu_max), (evicted_min, evicted_max)
(REMOVED_MAX,) = documented(r"at most ([\d,]+) of a stream \(`removed_max`\)")


def test_a_block_on_the_gpu_takes_no_more_than_documented_and_not_much_less() -> None:
    with BlockMemory.measured() as blocks:
        blocks.store(BLOCKS)
        assert ON_GPU[0] < blocks.bytes / BLOCKS < ON_GPU[1]


def test_a_copy_below_the_gpu_takes_no_more_than_documented() -> None:
    with BlockMemory.measured() as blocks:
        blocks.store(BLOCKS)
        on_gpu = blocks.bytes
        blocks.offload()
        assert SHARE_MIN * PER_COPY < (blocks.bytes - on_gpu) / BLOCKS < PER_COPY


def test_a_block_that_was_evicted_takes_no_more_than_documented_and_their_number_is_bounded() -> None:
    """The engine holds as many as before, and has evicted one and a half times as many."""
    assert StateLimits().removed_max == REMOVED_MAX
    with BlockMemory.measured(removed_max=BLOCKS) as blocks:
        blocks.store(BLOCKS)
        held = blocks.bytes
        for _ in range(15):
            blocks.store(1_600)
            blocks.evict(1_600)
        remembered = blocks.state.table.removed
        assert BLOCKS * 15 / 16 <= len(remembered) <= BLOCKS
        assert EVICTED[0] < (blocks.bytes - held) / len(remembered) < EVICTED[1]


def test_an_engine_that_never_evicts_takes_no_more_than_its_limit_and_what_was_dropped() -> None:
    count_max = 4_800
    with BlockMemory.measured(gpu_blocks_max=count_max, removed_max=640) as blocks:
        blocks.store(2 * count_max)
        blocks.lose_track()
        before = blocks.bytes
        blocks.store(4 * count_max)
        blocks.lose_track()
        assert blocks.state.tally["tier_limit"] >= 5 * count_max
        assert blocks.bytes < 1.2 * before
        assert blocks.bytes < 1.5 * ON_GPU[1] * count_max + EVICTED[1] * 640
