"""What it has to reach. Shown as pass or fail, and asserted nowhere: it depends on the machine."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from bench.against import IN_MEMORY, IN_REDIS, INGEST, LOOK_UP_450, Against
from bench.hybrid import Hybrid
from bench.ingest import LARGE_EVENTS, Ingest
from bench.routing import Routing
from bench.scoring import Scoring
from bench.shared import SharedCopies, SharedIngest
from bench.visibility import Visibility

INGEST_BLOCKS_PER_S = 300_000
SCORING_P50_MS = 2.0
# Of a pick beyond a score, which is answered in the compiled core: choosing among 8 pods, noting what was sent there, a longer answer.
ROUTE_CPU_MORE_US = 400
HYBRID_CPU_RATIO = 1.5
SHARED_INGEST_BLOCKS_PER_S = 250_000
SHARED_VISIBLE_P50_MS = 5.0
SHARED_VISIBLE_P99_MS = 25.0
SHARED_BYTES_PER_COPY = 120
AGAINST_RATIOS = {(INGEST, IN_REDIS): 5, (LOOK_UP_450, IN_MEMORY): 50}


class Floor(Struct, frozen=True):
    """One floor and what was measured."""

    floor: str
    measured: float
    verdict: str


def judge(results: Mapping[str, Sequence[Struct]]) -> list[Floor]:
    """The floors whose measurement was made."""
    rows = [row for measured in results.values() for row in measured]
    floors = [
        _floor(f"64-block events: at least {INGEST_BLOCKS_PER_S:,} blocks/s", row.blocks_per_s, row.blocks_per_s >= INGEST_BLOCKS_PER_S)
        for row in rows
        if isinstance(row, Ingest) and row.shape == LARGE_EVENTS
    ]
    floors += [
        _floor(f"JSON scores of 512 blocks, one connection: p50 at most {SCORING_P50_MS} ms", row.p50_ms, row.p50_ms <= SCORING_P50_MS)
        for row in rows
        if isinstance(row, Scoring) and (row.body, row.blocks, row.connections) == ("json", 512, 1)
    ]
    floors += [
        _floor(
            f"a pick's CPU beyond a score's, {row.body}, 512 blocks: at most {ROUTE_CPU_MORE_US} us",
            row.route_cpu_us - row.score_cpu_us,
            row.route_cpu_us - row.score_cpu_us <= ROUTE_CPU_MORE_US,
        )
        for row in rows
        if isinstance(row, Routing) and (row.body, row.blocks) == ("json", 512)
    ]
    floors += [
        _floor(f"a hybrid model's query to a plain one's, {row.blocks} blocks: at most {HYBRID_CPU_RATIO}", row.ratio, row.ratio <= HYBRID_CPU_RATIO)
        for row in rows
        if isinstance(row, Hybrid)
    ]
    for row in rows:
        if isinstance(row, SharedIngest):
            text = f"through Redis, 64-block events: at least {SHARED_INGEST_BLOCKS_PER_S:,} blocks/s"
            floors.append(_floor(text, row.blocks_per_s, row.blocks_per_s >= SHARED_INGEST_BLOCKS_PER_S))
        if isinstance(row, SharedCopies):
            text = f"memory of Redis per block copy: at most {SHARED_BYTES_PER_COPY} bytes"
            floors.append(_floor(text, row.bytes_per_copy, row.bytes_per_copy <= SHARED_BYTES_PER_COPY))
        if isinstance(row, Against) and (ratio := AGAINST_RATIOS.get((row.what, row.of))) is not None:
            floors.append(_floor(f"against llm-d's index in Redis, {row.what}: at least {ratio} times better", row.ratio, row.ratio >= ratio))
    for row in results.get("shared-visibility", ()):
        if isinstance(row, Visibility):
            text = f"publish to visible through Redis: p50 at most {SHARED_VISIBLE_P50_MS} ms, p99 at most {SHARED_VISIBLE_P99_MS} ms"
            floors.append(_floor(text, row.p99_ms, row.p50_ms <= SHARED_VISIBLE_P50_MS and row.p99_ms <= SHARED_VISIBLE_P99_MS))
    return floors


def _floor(text: str, measured: float, is_met: bool) -> Floor:
    return Floor(text, measured, "pass" if is_met else "FAIL")
