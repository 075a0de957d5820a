"""`--probe`: sends a new prompt through an engine, twice. Do its blocks appear in the service, and does the engine's own count agree?

The prompt is the given one with a random end, as token ids, so that tokenization does not matter. Each engine gets at most two small requests.
"""

import asyncio
import secrets
from collections.abc import Sequence

from msgspec import Struct

from scorer_api.doctor.checks.observations import ObservedEngine, ObservedPod
from scorer_api.doctor.checks.probe import PodMatch, ProbeResult
from scorer_api.doctor.checks.reply import Reply
from scorer_api.doctor.probes.asker import Asker
from scorer_api.doctor.probes.engine_api import tokenize
from scorer_api.doctor.probes.service_api import Service

COMPLETE_S = 30.0
APPEAR_S = 8.0
AGAIN_S = 0.2
# Several blocks, so that the end of the prompt contains whole blocks that are new.
NEW_BLOCKS = 3
USUAL_BLOCK_SIZE, BLOCK_SIZE_MAX = 16, 512
PROMPT = "The doctor asks whether this is remembered."
# Room for what an engine adds, and for the one token that it makes.
SPARE_TOKENS = 8


class _Score(Struct):
    pods: list[PodMatch]


class _Details(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Completion(Struct):
    usage: _Usage | None = None


async def probe(asker: Asker, service: Service, pod: ObservedPod, engine: ObservedEngine, prompt: str | None) -> ProbeResult:
    """`asker`: one without the service's token. Never raises for what the others do."""
    ranks = max(1, len(pod.streams))
    tokens = await _tokens(asker, pod, engine, prompt or PROMPT)
    if tokens is None:
        return ProbeResult(ranks=ranks, refusal=f"{engine.base}/tokenize makes no tokens of it")
    probed = ProbeResult(len(tokens), ranks, before=await _scored(service, pod, tokens))
    if probed.before is None:
        probed.refusal = "the service answers no score for it"
        return probed
    first = await _complete(asker, pod, engine, tokens)
    if not first.is_ok:
        probed.refusal = f"{engine.base}/v1/completions says {first.said}"
        return probed
    await _appear(service, pod, tokens, probed)
    second = await _complete(asker, pod, engine, tokens)
    said = second.read(_Completion) if second.is_ok else None
    if said is not None and said.usage is not None and said.usage.prompt_tokens_details is not None:
        probed.cached_tokens = said.usage.prompt_tokens_details.cached_tokens
    return probed


async def _tokens(asker: Asker, pod: ObservedPod, engine: ObservedEngine, prompt: str) -> list[int] | None:
    """The prompt's tokens, followed by enough new ones."""
    block_size = min(engine.block_size or max(pod.block_sizes, default=USUAL_BLOCK_SIZE), BLOCK_SIZE_MAX)
    wanted = NEW_BLOCKS * block_size + 1
    # Each word is one token or more.
    words = " ".join(secrets.token_hex(4) for _ in range(wanted))
    own = await tokenize(asker, engine.base, pod.model, prompt)
    end = await tokenize(asker, engine.base, pod.model, words)
    if not own or not end:
        return None
    room = (engine.context_max or 2**31) - SPARE_TOKENS
    kept = own[: max(0, room - wanted)]
    return [*kept, *end[-wanted:]][:room]


async def _complete(asker: Asker, pod: ObservedPod, engine: ObservedEngine, tokens: Sequence[int]) -> Reply:
    asked = {"model": pod.model, "prompt": tokens, "max_tokens": 1, "temperature": 0}
    return await asker.post(f"{engine.base}/v1/completions", asked, timeout_s=COMPLETE_S)


async def _scored(service: Service, pod: ObservedPod, tokens: list[int]) -> PodMatch | None:
    reply = await service.score(pod.model, tokens, [pod.pod])
    found = reply.read(_Score) if reply.is_ok else None
    return next((each for each in found.pods if each.pod == pod.pod), None) if found is not None else None


async def _appear(service: Service, pod: ObservedPod, tokens: list[int], probed: ProbeResult) -> None:
    """Wait until the service knows all usable blocks, or the time limit has passed."""
    clock = asyncio.get_running_loop().time
    started = clock()
    while True:
        probed.after = await _scored(service, pod, tokens) or probed.after
        probed.waited_s = clock() - started
        is_whole = probed.after is not None and 0 < probed.after.usable_blocks <= probed.after.matched_blocks
        if is_whole or probed.waited_s > APPEAR_S:
            return
        await asyncio.sleep(AGAIN_S)
