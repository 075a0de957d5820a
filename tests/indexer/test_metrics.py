"""Metrics that we collect ourselves."""

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from indexer.metrics import AGE_BUCKETS_S, EventAges


def test_an_age_leads_to_the_trace_of_its_batch() -> None:
    """As the library shows it: in the bucket of the age."""
    ours, ages = CollectorRegistry(), EventAges()
    ours.register(ages)
    ages.observe(0.015)
    ages.lead_to(0.015, {"trace_id": "0af7", "span_id": "b7ad"})
    ages.lead_to(70.0, {"trace_id": "1111", "span_id": "2222"})
    lines = openmetrics.generate_latest(ours).decode().splitlines()
    found = {line.partition("}")[0] + "}": line.partition(" # ")[2].rpartition(" ")[0] for line in lines if " # " in line}
    assert found == {
        'kv_indexer_event_age_seconds_bucket{le="0.02"}': '{span_id="b7ad",trace_id="0af7"} 0.015',
        'kv_indexer_event_age_seconds_bucket{le="+Inf"}': '{span_id="2222",trace_id="1111"} 70.0',
    }


def test_ages_of_events_read_like_a_histogram_of_the_library() -> None:
    ours, library = CollectorRegistry(), CollectorRegistry()
    ages = EventAges()
    ours.register(ages)
    histogram = Histogram(
        "kv_indexer_event_age_seconds",
        "Time from the engine's timestamp of a live batch to its application, by the clocks of the two machines.",
        buckets=AGE_BUCKETS_S,
        registry=library,
    )
    assert generate_latest(ours) == generate_latest(library)
    for age_s in (0.0, 0.001, 0.0011, 0.3, 7.5, 60.0, 61.0):
        ages.observe(age_s)
        histogram.observe(age_s)
        assert generate_latest(ours) == generate_latest(library)
