"""Checks the service's answers about a prompt."""

from collections.abc import Iterator

from msgspec import Struct

from scorer_api.doctor.checks.findings import Finding, finding
from scorer_api.doctor.checks.kinds import Severity
from scorer_api.doctor.checks.reply import Reply

PROMPT = "prompt"
PODS_MAX = 8
HINTS_MAX = 20
# Hints that point to no mistake.
MILDER = {"prompt_too_short": Severity.NOTE, "block_sizes_differ": Severity.NOTE}


class _Pod(Struct):
    pod: str
    matched_tokens: int
    usable_blocks: int = 0
    block_size: int | None = None


class _Score(Struct):
    tokens: int
    pods: list[_Pod]


class _Why(Struct):
    pod: str
    why: str
    matched_tokens: int = 0
    usable_blocks: int = 0
    block_size: int | None = None


class _Hint(Struct):
    code: str
    detail: str


class _Explained(Struct):
    pods: list[_Why]
    tokens: int | None = None
    hints: list[_Hint] = []


class _Problem(Struct):
    detail: str


def check_prompt(score: Reply | None, explained: Reply | None) -> list[Finding]:
    """`score`: None if the prompt's tokens are not known here. `explained`: the answer of /v1/explain, which an older service does not have."""
    why = explained.read(_Explained) if explained is not None and explained.is_ok else None
    if score is None and why is None:
        said = "no engine's /tokenize was to be had" + ("" if explained is None else f", and the service says {_detail(explained)}")
        return [finding("tokenize_missing", PROMPT, said, Severity.WARNING)]
    found: list[Finding] = []
    scored = None if score is None else score.read(_Score) if score.is_ok else None
    if scored is None and score is not None and why is None:
        return [finding("prompt_refused", PROMPT, f"the service says {_detail(score)}")]
    tokens = scored.tokens if scored is not None else why.tokens if why is not None else None
    found += _matches([*(scored.pods if scored is not None else why.pods if why is not None else [])], tokens)
    if why is not None:
        found += [finding("explained", f"pod {pod.pod}", pod.why) for pod in why.pods[:PODS_MAX]]
        found += [finding("hint", PROMPT, f"{hint.code}: {hint.detail}", MILDER.get(hint.code)) for hint in why.hints[:HINTS_MAX]]
    elif explained is not None and explained.status != 404:
        found.append(finding("prompt_refused", PROMPT, f"/v1/explain says {_detail(explained)}"))
    return found


def _matches(pods: list[_Pod | _Why], tokens: int | None) -> Iterator[Finding]:
    best = max(pods, key=lambda pod: pod.matched_tokens, default=None)
    if best is not None and best.matched_tokens > 0:
        yield finding("prompt_matches", PROMPT, f"{best.pod} holds {best.matched_tokens} of {tokens} tokens")
    elif pods and any(pod.block_size for pod in pods) and not any(pod.usable_blocks for pod in pods):
        size = min(pod.block_size for pod in pods if pod.block_size)
        yield finding("prompt_too_short", PROMPT, f"it has {tokens} tokens; it takes {size + 1} for a block of {size} to match")
    else:
        yield finding("prompt_unmatched", PROMPT, f"none of {len(pods)} pods holds anything of its {tokens} tokens")


def _detail(reply: Reply) -> str:
    said = reply.read(_Problem)
    return f"{reply.status}: {said.detail}" if said is not None else reply.said
