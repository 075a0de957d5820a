"""Metrics that we collect ourselves."""

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from indexer.metrics import AGE_BUCKETS_S, EventAges


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
