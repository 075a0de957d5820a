"""TensorRT-LLM's iteration statistics, by hand."""

import msgspec
import pytest

from indexer.engines.iteration_stats import EMPTY_MAX, IterationStatsReader, is_iteration_stats

RUNNING, WAITING = "trtllm:num_requests_running", "trtllm:num_requests_waiting"


def stats(*iterations: tuple[int, int], **more: object) -> bytes:
    return msgspec.json.encode([{"iter": 7, "numActiveRequests": active, "numQueuedRequests": queued, **more} for active, queued in iterations])


def test_the_last_iteration_counts() -> None:
    cache = {"maxNumBlocks": 1000, "freeNumBlocks": 400, "usedNumBlocks": 600, "tokensPerBlock": 64, "cacheHitRate": 0.85}
    assert IterationStatsReader().read(stats((99, 98), (5, 3), kvCacheStats=cache)) == {
        RUNNING: [5],
        WAITING: [3],
        "trtllm:kv_cache_utilization": [0.6],
        "trtllm:kv_cache_max_blocks": [1000],
        "trtllm:kv_cache_tokens_per_block": [64],
    }


def test_an_engine_without_iterations_is_unknown_at_first_and_idle_later() -> None:
    reader = IterationStatsReader()
    for _ in range(EMPTY_MAX + 1):
        assert reader.read(b"[]") == {}
    reader.read(stats((5, 3)))
    for _ in range(EMPTY_MAX - 1):
        assert reader.read(b"[]") == {RUNNING: [5], WAITING: [3]}
    assert reader.read(b"[]") == {RUNNING: [0], WAITING: [0]}
    assert reader.read(stats((1, 0))) == {RUNNING: [1], WAITING: [0]}


@pytest.mark.parametrize("answer", [b"[{}]", b"[", b"[1]", b'[{"numActiveRequests": "x", "numQueuedRequests": 1}]', b"[" * 10_000])
def test_other_json_is_refused(answer: bytes) -> None:
    with pytest.raises(ValueError, match="no iteration statistics"):
        IterationStatsReader().read(answer)


def test_json_is_told_from_prometheus_text() -> None:
    assert [is_iteration_stats(answer) for answer in (b"[]", b" \n[{}]", b"# HELP x", b"", b"vllm:x 1")] == [True, True, False, False, False]
