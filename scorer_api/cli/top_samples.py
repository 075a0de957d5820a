"""Samples of a running service, taken from `/v1/pods` and `/metrics`, and the rates between two of them."""

from collections.abc import Iterable

from msgspec import Struct

from indexer.metrics_text import read_samples
from scorer_api.client import PodStatus, StreamStatus

PREFIX = "kv_indexer_"


class Sample(Struct, frozen=True):
    """One sample. `at_s`: monotonic time. `totals`: each metric of ours, summed over its labels, without the prefix."""

    at_s: float
    pods: list[PodStatus]
    totals: dict[str, float]


class StreamRow(Struct, frozen=True):
    """A stream with its batches per second; None before the second sample."""

    pod: str
    model: str
    stream: StreamStatus
    batches_per_s: float | None
    is_ready: bool = True


class Figures(Struct, frozen=True):
    """What happened between two samples; None if that is unknown. `hit_share`: the share of the prompts' tokens that the best pod held. `lag_s`: from
    the engine's time stamp on a batch to its application, on average. `score_s`: time spent on a score request, on average.
    """

    events_per_s: float | None
    stored_per_s: float | None
    removed_per_s: float | None
    scores_per_s: float | None
    score_s: float | None
    hit_share: float | None
    lag_s: float | None
    blocks: float | None
    follower_age_s: float | None
    redis_up: bool | None


def totals_of(text: str) -> dict[str, float]:
    """Totals from the text format of Prometheus. Raises ValueError for anything else."""
    totals: dict[str, float] = {}
    for sample in read_samples(text, lambda name: True):
        if sample.name.startswith(PREFIX):
            name = sample.name.removeprefix(PREFIX)
            totals[name] = totals.get(name, 0.0) + sample.value
    return totals


def figures(before: Sample | None, now: Sample) -> Figures:
    """The figures between these samples."""

    def growth_of(name: str) -> float | None:
        if before is None or name not in now.totals or name not in before.totals:
            return None
        growth = now.totals[name] - before.totals[name]
        return growth if growth >= 0 else None  # the service was restarted in between

    def per_s(name: str) -> float | None:
        return _ratio(growth_of(name), None if before is None else now.at_s - before.at_s)

    # A service without Redis has this metric too, at 0.
    has_redis = "follower_age_seconds" in now.totals or "score_requests_total" not in now.totals
    redis_up = now.totals.get("redis_up") if has_redis else None
    return Figures(
        events_per_s=per_s("events_total"),
        stored_per_s=per_s("blocks_stored_total"),
        removed_per_s=per_s("blocks_removed_total"),
        scores_per_s=per_s("score_requests_total"),
        score_s=_ratio(growth_of("score_seconds_sum"), growth_of("score_requests_total")),
        hit_share=_ratio(growth_of("matched_tokens_total"), growth_of("prompt_tokens_total")),
        lag_s=_ratio(growth_of("event_age_seconds_sum"), growth_of("event_age_seconds_count")),
        blocks=now.totals.get("index_blocks"),
        follower_age_s=now.totals.get("follower_age_seconds"),
        redis_up=None if redis_up is None else bool(redis_up),
    )


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def rows(before: Sample | None, now: Sample) -> list[StreamRow]:
    """Every stream, those that are not live first."""
    earlier = dict(_streams(before.pods if before is not None else ()))
    unready = {(pod.pod, pod.model) for pod in now.pods if not pod.ready}
    result = []
    for key, stream in _streams(now.pods):
        known = earlier.get(key)
        batches = None
        if before is not None and known is not None and stream.batches >= known.batches:
            batches = _ratio(stream.batches - known.batches, now.at_s - before.at_s)
        result.append(StreamRow(key[0], key[1], stream, batches, key[:2] not in unready))
    return sorted(result, key=lambda row: (row.stream.trust == "live", row.pod, row.model, row.stream.rank))


def _streams(pods: Iterable[PodStatus]) -> Iterable[tuple[tuple[str, str, int], StreamStatus]]:
    return [((pod.pod, pod.model, stream.rank), stream) for pod in pods for stream in pod.streams]
