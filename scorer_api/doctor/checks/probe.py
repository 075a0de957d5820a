"""Checks the result of a probe."""

from msgspec import Struct

from scorer_api.doctor.checks.findings import Finding, finding
from scorer_api.doctor.checks.kinds import Severity
from scorer_api.doctor.checks.observations import ObservedPod


class PodMatch(Struct):
    """A pod's match of the probe's prompt, by the service."""

    pod: str
    matched_tokens: int
    matched_blocks: int
    usable_blocks: int


class ProbeResult(Struct):
    """The result of one engine's probe.

    `before`, `after`: the pod's match before and after the engine computed the prompt. `cached_tokens`: what the engine took from its cache when it
    got the prompt again. `refusal`: why the probe was not carried out.
    """

    tokens: int = 0
    ranks: int = 1
    before: PodMatch | None = None
    after: PodMatch | None = None
    waited_s: float = 0.0
    cached_tokens: int | None = None
    refusal: str = ""


def check_probe(pod: ObservedPod, probed: ProbeResult) -> list[Finding]:
    """Whether the service learned of the new blocks, and the engine's own count agrees."""
    subject, before, after = f"pod {pod.pod}", probed.before, probed.after
    if probed.refusal:
        return [finding("probe_refused", subject, probed.refusal)]
    if before is None or after is None or after.matched_blocks <= before.matched_blocks:
        said = f"{probed.tokens} tokens were computed, and after {probed.waited_s:.0f} s none of their new blocks is known"
        return [finding("probe_unseen", subject, said)]
    blocks = f"{after.matched_blocks} of {after.usable_blocks} blocks of a new prompt were known after {probed.waited_s:.1f} s"
    if after.matched_blocks < after.usable_blocks:
        return [finding("probe_unseen", subject, blocks, Severity.WARNING)]
    if probed.cached_tokens is None:
        return [finding("probe_uncounted", subject, f"{blocks}; the engine does not say what it took from its cache")]
    if probed.cached_tokens != after.matched_tokens:
        several = f"; it has {probed.ranks} ranks, and the second request may have gone to another" if probed.ranks > 1 else ""
        said = f"the engine took {probed.cached_tokens} tokens from its cache, the service says {after.matched_tokens}"
        return [finding("probe_differs", subject, said + several + _drafter(probed.cached_tokens, after))]
    return [finding("probe_well", subject, f"{blocks}; the engine took {probed.cached_tokens} tokens from its cache, as the service says")]


def _drafter(cached_tokens: int, after: PodMatch) -> str:
    """A hint where the difference is one block: nothing else tells that an engine drafts with EAGLE or MTP."""
    if not after.matched_blocks or after.matched_tokens - cached_tokens != after.matched_tokens // after.matched_blocks:
        return ""
    return "; that is one block less, as with an EAGLE or MTP drafter: if the engine has one, give drops_last_block=1 in the spec"
