"""The series that each stream has of its own: they come and go with it."""

import time
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from indexer.core.names import StreamKey
from indexer.metrics import IndexerMetrics
from tests.engine import Engine, stored
from tests.running import Client, Running

NAME = "kv_indexer_stream_last_batch_timestamp_seconds"
Series = dict[tuple[str, str, str], float]


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def service() -> Iterator[Client]:
    with Running() as service:
        yield service


def put(service: Client, engine: Engine, pod: str = "pod", **more: object) -> None:
    body = {"model": "m", "events": f"tcp://127.0.0.1:{engine.events_port}", "replay": f"tcp://127.0.0.1:{engine.replay_port}", **more}
    assert service.http.put(f"{service.url}/v1/pods/{pod}", json=body).is_success


def series_in(text: str) -> Series:
    """By model, pod and rank."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples if sample.name == NAME]
    return {(sample.labels["model"], sample.labels["engine_pod"], sample.labels["rank"]): sample.value for sample in samples}


def series(service: Client) -> Series:
    return series_in(service.http.get(f"{service.url}/metrics").text)


def test_it_is_zero_before_the_first_batch_and_then_the_time_of_the_last(service: Client, engine: Engine) -> None:
    put(service, engine)
    service.wait_for(trust="live")
    assert series(service)["m", "pod", "0"] == 0
    before_s = time.time()
    engine.publish(stored([1], [1, 2, 3, 4]))
    service.wait_for(sequence=0)
    first_s = series(service)["m", "pod", "0"]
    assert before_s - 0.2 <= first_s <= time.time() + 0.2
    assert series(service)["m", "pod", "0"] == pytest.approx(first_s, abs=0.11)  # it stands still, apart from rounding


def test_a_forgotten_pod_leaves_no_series(service: Client, engine: Engine) -> None:
    put(service, engine, "10.0.0.7:8000")
    service.wait_for(pod="10.0.0.7:8000", trust="live")
    assert ("m", "10.0.0.7:8000", "0") in series(service)
    assert service.http.delete(f"{service.url}/v1/pods/10.0.0.7%3A8000").status_code == 204
    text = service.http.get(f"{service.url}/metrics").text
    assert not [pod for _, pod, _ in series_in(text) if pod == "10.0.0.7:8000"]
    assert "10.0.0.7" not in text


def test_a_pod_that_changes_leaves_nothing_of_what_it_was(service: Client, engine: Engine) -> None:
    put(service, engine, "changes", ranks=3)
    assert sorted(rank for _, pod, rank in series(service) if pod == "changes") == ["0", "1", "2"]
    put(service, engine, "changes", ranks=2)
    assert sorted(rank for _, pod, rank in series(service) if pod == "changes") == ["0", "1"]
    put(service, engine, "changes", model="n")
    assert [key for key in series(service) if key[1] == "changes"] == [("n", "changes", "0")]
    service.http.delete(f"{service.url}/v1/pods/changes")
    assert not [key for key in series(service) if key[1] == "changes"]


def test_a_hundred_pods_that_came_and_went_leave_no_more_than_none(service: Client, engine: Engine) -> None:
    before = len(service.http.get(f"{service.url}/metrics").text.splitlines())
    for number in range(100):
        put(service, engine, f"pod-{number}")
    assert len([pod for _, pod, _ in series(service) if pod.startswith("pod-")]) == 100
    for number in range(100):
        assert service.http.delete(f"{service.url}/v1/pods/pod-{number}").status_code == 204
    assert len(service.http.get(f"{service.url}/metrics").text.splitlines()) == before


def test_the_series_is_there_for_readers_of_both_formats(service: Client, engine: Engine) -> None:
    put(service, engine, "formats")
    for accept in ("text/plain", "application/openmetrics-text; version=1.0.0"):
        text = service.http.get(f"{service.url}/metrics", headers={"Accept": accept}).text
        assert f'{NAME}{{engine_pod="formats",model="m",rank="0"}} 0.0' in text or f'{NAME}{{model="m",engine_pod="formats",rank="0"}} 0.0' in text


def test_any_name_is_told_as_it_is() -> None:
    registry = CollectorRegistry()
    metrics = IndexerMetrics(registry)
    key = StreamKey('meta/"llama"', "a\\b\nc, d{e}", 7)
    metrics.last_batches.read = lambda: [(key, 5.5)]
    assert series_in(generate_latest(registry).decode()) == {(key.model, key.pod, "7"): 5.5}


def test_it_is_declared_without_any_stream() -> None:
    registry = CollectorRegistry()
    IndexerMetrics(registry)
    text = generate_latest(registry).decode()
    assert f"# TYPE {NAME} gauge" in text
    assert series_in(text) == {}
