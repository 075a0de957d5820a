"""The trace of a rank."""

from indexer.core.names import Trust
from scorer_api.index.traces import RankTrace


def test_the_matched_blocks_of_all_tiers_count() -> None:
    assert RankTrace(0, Trust.LIVE, 16, 9, [("gpu", 3), ("cpu", 2), ("gpu", 1)], 0.5).matched_blocks == 6
    assert RankTrace(0, Trust.LIVE, None, 0, [], 0.0).matched_blocks == 0
