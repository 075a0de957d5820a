"""The metrics of workers in one text. The workers here live in one process."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families

from indexer.http.exposition import exposition
from indexer.http.worker_metrics import WorkerMetrics
from indexer.workers.board import WorkerState
from tests.indexer.workers.test_worker import running

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


def registry_of(number: int) -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("asked", "Questions.", ["outcome"], registry=registry).labels("good").inc(number)
    Gauge("level", "A gauge that is a function.", registry=registry).set_function(lambda: number / 2)
    Histogram("took_seconds", "A histogram.", buckets=[1.0], registry=registry).observe(number, {"trace_id": f"{number}{number}"})
    if number == 2:
        Gauge("only_one_has_it", "A gauge.", registry=registry).set(5)
    return registry


@pytest.mark.parametrize("accepted", ["", OPEN_METRICS])
async def test_each_series_is_there_for_each_worker_with_its_own_value(accepted: str) -> None:
    encode, _ = choose_encoder(accepted)
    async with running(4) as workers:
        metrics = [WorkerMetrics(registry_of(worker.number), worker) for worker in workers[:3]]
        workers[0].group.board.set_state(3, WorkerState.DOWN)
        workers[0].group.board.count_restart(3)
        text = (await exposition(await metrics[1].gather(), encode)).decode()
    assert text.count("# TYPE level gauge") == 1
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value for each in text_string_to_metric_families(text) for sample in each.samples
    }
    for number in range(3):
        worker = ("worker", str(number))
        assert found["asked_total", (("outcome", "good"), worker)] == number
        assert found["level", (worker,)] == number / 2
        assert found["took_seconds_bucket", (("le", "1.0"), worker)] == (number <= 1)
        assert found["took_seconds_sum", (worker,)] == number
    buckets = [line for line in text.splitlines() if line.startswith("took_seconds_bucket") and " # " in line]
    assert len(buckets) == (3 if accepted else 0)
    for number, line in enumerate(buckets):
        assert f'worker="{number}"' in line
        assert f' # {{trace_id="{number}{number}"}} {float(number)} ' in line
    assert found["only_one_has_it", (("worker", "2"),)] == 5
    assert [found["kv_indexer_worker_up", (("worker", str(number)),)] for number in range(4)] == [1, 1, 1, 0]
    assert [found["kv_indexer_worker_restarts_total", (("worker", str(number)),)] for number in range(4)] == [0, 0, 0, 1]
