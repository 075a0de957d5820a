"""What came of a probe, and what that means."""

from msgspec import Struct

from scorer_api.doctor.findings import Finding, finding
from scorer_api.doctor.seen import PodSeen


class Scored(Struct):
    """How much of the probe the service knows of a pod."""

    pod: str
    matched_tokens: int
    matched_blocks: int
    usable_blocks: int


class Probed(Struct):
    """What came of one engine's probe. `cached_tokens`: what the engine took from its cache the second time; `before`: what was known before.

    `refusal`: why it was not carried out.
    """

    tokens: int = 0
    ranks: int = 1
    before: Scored | None = None
    after: Scored | None = None
    waited_s: float = 0.0
    cached_tokens: int | None = None
    refusal: str = ""


def judge_probe(pod: PodSeen, probed: Probed) -> list[Finding]:
    """What the probe shows."""
    subject, before, after = f"pod {pod.pod}", probed.before, probed.after
    if probed.refusal:
        return [finding("probe_refused", subject, probed.refusal)]
    if before is None or after is None or after.matched_blocks <= before.matched_blocks:
        said = f"{probed.tokens} tokens were computed, and after {probed.waited_s:.0f} s none of their new blocks is known"
        return [finding("probe_unseen", subject, said)]
    blocks = f"{after.matched_blocks} of {after.usable_blocks} blocks of a new prompt were known after {probed.waited_s:.1f} s"
    if after.matched_blocks < after.usable_blocks:
        return [finding("probe_incomplete", subject, blocks)]
    if probed.cached_tokens is None:
        return [finding("probe_uncounted", subject, f"{blocks}; the engine does not say what it took from its cache")]
    if probed.cached_tokens != after.matched_tokens:
        several = f"; it has {probed.ranks} ranks, and the second request may have gone to another" if probed.ranks > 1 else ""
        said = f"the engine took {probed.cached_tokens} tokens from its cache, the service says {after.matched_tokens}{several}"
        return [finding("probe_differs", subject, said)]
    return [finding("probe_well", subject, f"{blocks}; the engine took {probed.cached_tokens} tokens from its cache, as the service says")]
