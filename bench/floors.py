"""What it has to reach. Shown as pass or fail, and asserted nowhere: it depends on the machine."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from bench.ingest import Ingest
from bench.scoring import Scoring

INGEST_BLOCKS_PER_S = 300_000
SCORING_P50_MS = 2.0


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
        if isinstance(row, Ingest) and row.shape.startswith("64-block")
    ]
    floors += [
        _floor(f"JSON scores of 512 blocks, one connection: p50 at most {SCORING_P50_MS} ms", row.p50_ms, row.p50_ms <= SCORING_P50_MS)
        for row in rows
        if isinstance(row, Scoring) and (row.body, row.blocks, row.connections) == ("json", 512, 1)
    ]
    return floors


def _floor(text: str, measured: float, is_met: bool) -> Floor:
    return Floor(text, measured, "pass" if is_met else "FAIL")
