"""Checks the service, by its own answers."""

import difflib
from collections.abc import Iterable

from msgspec import Struct

from indexer.errors import LOSSY_REASONS
from scorer_api.doctor.checks.findings import Finding, finding
from scorer_api.doctor.checks.observations import ObservedPod, ObservedService

SERVICE = "service"
# Refusals after which blocks are missing that an engine holds. Others are normal, for instance with hybrid models.
REPORTED_REASONS = LOSSY_REASONS | {"block_size", "ambiguous_key", "key_conflict", "frame_count", "frame_sequence", "topic", "topic_claimed"}
REASONS_MAX = 10
NAMES_MAX = 5


class _Health(Struct):
    status: str


class _Readiness(Struct):
    status: str
    reasons: list[str] = []


def check_service(seen: ObservedService, refused: dict[str, int], has_token: bool, url: str) -> list[Finding]:
    """`refused`: reason → count, from its metrics. If `seen.pods` is None, the findings say why."""
    if (reason := _unusable(seen, url)) is not None:
        return [reason]
    found = _access(seen, has_token) or _metrics(seen, refused)
    found = _readiness(seen) + found
    if seen.pods is None and not any(each.code == "token_wrong" for each in found):
        found.append(finding("service_other", SERVICE, f"/v1/pods at {url} answers {seen.listed.said}"))
    if seen.pods is not None and not seen.pods:
        found.append(finding("no_pods", SERVICE, "no pod is registered, so every answer is empty, or says that the model is not known"))
    return found or [finding("service_well", SERVICE, f"{url} is ready and knows {_count(len(seen.pods or ()), 'pod')}")]


def _unusable(seen: ObservedService, url: str) -> Finding | None:
    """Why there is no use in asking it anything."""
    health = seen.health
    if health.status is None:
        code = "service_tls" if health.is_tls_error or seen.wants_tls else "service_unreachable"
        return finding(code, SERVICE, f"no answer from {url}: {health.error}" + ("; it speaks TLS there" if seen.wants_tls else ""))
    said = health.read(_Health)
    if not health.is_ok or said is None or said.status != "alive":
        return finding("service_other", SERVICE, f"/healthz at {url} answers {health.said}")
    return None


def _access(seen: ObservedService, has_token: bool) -> list[Finding]:
    if seen.listed.status not in (401, 403):
        return []
    return [finding("token_wrong", SERVICE, f"/v1/pods answers {seen.listed.status}, {'with' if has_token else 'without'} a token")]


def _readiness(seen: ObservedService) -> list[Finding]:
    said = seen.ready.read(_Readiness)
    if said is None or seen.ready.status not in (200, 503):
        return [finding("service_other", SERVICE, f"/readyz answers {seen.ready.said}")]
    if said.status == "ready":
        return []
    return [
        finding("service_degraded", SERVICE, f"/readyz says {said.status}: {reason}")
        for reason in said.reasons[:REASONS_MAX] or ["it says no reason"]
    ]


def _metrics(seen: ObservedService, refused: dict[str, int]) -> list[Finding]:
    if not seen.metrics.is_ok or b"kv_indexer_" not in seen.metrics.body:
        return [finding("metrics_unreachable", SERVICE, f"/metrics answers {seen.metrics.said}")]
    reported = {reason: count for reason, count in refused.items() if reason in REPORTED_REASONS}
    if not reported:
        return []
    counts = ", ".join(f"{reason} {count}" for reason, count in sorted(reported.items()))
    return [finding("events_refused", SERVICE, f"refused since it started: {counts}")]


def check_choice(pods: list[ObservedPod], model: str | None, names: Iterable[str]) -> list[Finding]:
    """Whether the requested pods exist: those of this model, those of these names."""
    found = []
    if model is not None and pods and not any(pod.model == model for pod in pods):
        models = sorted({pod.model for pod in pods})
        near = difflib.get_close_matches(model, models, n=1)
        known = ", ".join(repr(name) for name in (near or models)[:NAMES_MAX])
        found.append(finding("pod_unknown", SERVICE, f"no pod of {model!r} is registered; {'did you mean' if near else 'there are'} {known}"))
    known_names = {pod.pod for pod in pods}
    return found + [finding("pod_unknown", f"pod {name}", f"no pod {name!r} is registered") for name in names if name not in known_names]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
