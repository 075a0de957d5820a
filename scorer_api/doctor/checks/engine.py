"""Checks an engine, by its own API."""

from collections.abc import Iterator, Sequence

from scorer_api.doctor.checks.findings import Finding, finding
from scorer_api.doctor.checks.kinds import Severity
from scorer_api.doctor.checks.observations import ObservedEngine, ObservedPod

NAMES_MAX = 5


def check_engine(pod: ObservedPod, seen: ObservedEngine) -> list[Finding]:
    """Compare what the API says with what the service knows of the pod."""
    subject = f"pod {pod.pod}"
    if seen.health.status is None:
        return [finding("unreachable_from_here", subject, f"the API at {seen.base}: {seen.health.error}")]
    found = [*_health(subject, seen), *_cache(subject, pod, seen), *_models(subject, pod, seen)]
    if any(each.severity in (Severity.WARNING, Severity.ERROR) for each in found):
        return found
    version = f", version {seen.version}" if seen.version else ""
    adapters = f", with adapters {', '.join(map(repr, seen.adapters[:NAMES_MAX]))}" if seen.adapters else ""
    return [finding("engine_well", subject, f"{seen.base} is well{version}{adapters}"), *found]


def _health(subject: str, seen: ObservedEngine) -> Iterator[Finding]:
    if seen.health.is_ok:
        return
    if seen.health.status in (401, 403, 404, 405):
        yield finding("unreachable_from_here", subject, f"{seen.base}/health answers {seen.health.said}: is that the engine, and does it want a key?")
    else:
        yield finding("engine_unhealthy", subject, f"{seen.base}/health answers {seen.health.said}")


def _cache(subject: str, pod: ObservedPod, seen: ObservedEngine) -> Iterator[Finding]:
    if seen.prefix_caching is False:
        yield finding("prefix_caching_off", subject, f"{seen.base} says that prefix caching is off")
    sizes = pod.block_sizes
    if seen.block_size is not None and sizes and seen.block_size not in sizes:
        announced = ", ".join(map(str, sorted(sizes)))
        yield finding("block_size_differs", subject, f"{seen.base} says blocks of {seen.block_size} tokens; its events have blocks of {announced}")
    if seen.prefix_caching is None and seen.block_size is None and seen.health.is_ok:
        yield finding("engine_metrics_missing", subject, f"neither {seen.base}/metrics nor its /server_info says how it caches")
    if seen.has_tokenize is False and seen.health.is_ok:
        yield finding("tokenize_missing", subject, f"{seen.base}/tokenize turns no prompt into tokens")


def _models(subject: str, pod: ObservedPod, seen: ObservedEngine) -> Iterator[Finding]:
    if seen.models is None:
        return
    served = [name for name in seen.models if name not in seen.adapters]
    if pod.model not in served:
        if pod.model in seen.adapters:
            said = f"{pod.model!r} is a LoRA adapter of {', '.join(map(repr, served[:NAMES_MAX]))}: register the pod with its base model"
        else:
            said = f"{seen.base} serves {', '.join(map(repr, served[:NAMES_MAX])) or 'nothing'}, and not {pod.model!r}"
        yield finding("model_not_served", subject, said)


def check_tokenizers(engines: Sequence[tuple[ObservedPod, ObservedEngine]]) -> list[Finding]:
    """Whether the pods of one model turn the same prompt into the same tokens."""
    tokens = {pod.pod: seen.tokens for pod, seen in engines if seen.tokens is not None}
    if len({tuple(each) for each in tokens.values()}) <= 1:
        return []
    said = ", ".join(f"{pod} {len(each)}" for pod, each in list(tokens.items())[:NAMES_MAX])
    return [finding("tokenizers_differ", "prompt", f"the pods' /tokenize make different tokens of it; numbers of tokens: {said}")]
