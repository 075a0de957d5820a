"""One pod: continuous batching with chunked prefill under a budget of tokens per step, and a cache of blocks.

A step computes one token of each request that generates, then as many prompt tokens as the budget has left: of the requests that run, then of those
that wait, in their order. A request is admitted while there is budget, a place in the batch and room in the cache. What it finds in the cache is
looked up then, up to the last whole block before its last token. Where a request that generates needs a block and none is free, the one that was
admitted last gives its blocks back and waits again, first in the queue.

Steps in which nothing but tokens of running requests are computed go many at once, up to the next that changes anything.
"""

import math
from collections import deque
from collections.abc import Sequence

from msgspec import Struct

from scorer_api.fleet.cache import BlockCache
from scorer_api.fleet.request import Request

# Steps that go at once: events of generated blocks come this late.
STEPS_AT_ONCE = 32


class PromptTooLongError(Exception):
    """A prompt with its answer has more tokens than a pod's cache."""


class PodModel(Struct, frozen=True):
    """What a pod is like.

    `step_s`: what each step takes; `sequence_s`, `context_s`: more for each request that generates, and for each token of its context;
    `prefill_tokens_per_s`: of computing prompts. `step_tokens`, `sequences_max`: what a step may hold.
    """

    kv_tokens: int
    prefill_tokens_per_s: float = 15_900.0
    step_s: float = 0.0109
    sequence_s: float = 0.00012
    context_s: float = 2.5e-8
    block_size: int = 64
    step_tokens: int = 8_192
    sequences_max: int = 256


class Running(Struct):
    """A request in the batch: its first `length` tokens are to be computed before it generates.

    `hashes`: of all blocks that it will have; it uses the first `named` of them, and `unnamed` blocks more.
    """

    request: Request
    hashes: list[int]
    length: int
    computed: int
    named: int
    unnamed: int
    admitted_s: float
    is_generating: bool = False
    prefilled_s: float = 0.0

    def missing(self, tokens: int, block_size: int) -> int:
        """Blocks that it needs besides its own to compute so many tokens more."""
        return max(0, -(-(self.computed + tokens) // block_size) - self.named - self.unnamed)


class StoredBlocks(Struct, frozen=True):
    """Blocks of one request's sequence that are in the cache now: those with the numbers `start` to `stop`."""

    request: Request
    start: int
    stop: int


class StepResult(Struct):
    """What one step, or several, brought. `events`: in their order, blocks that were stored and the hashes of blocks that were evicted."""

    events: list[StoredBlocks | list[int]]
    first_tokens: list[Request]
    done: list[Request]


class Counters(Struct):
    """What the engine counts since its start: at a request's first token `prompt_tokens` and `cached_tokens`, the others at its end, as vLLM does."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    requests: int = 0
    finished_prompt_tokens: int = 0
    prefill_tokens: int = 0
    prefill_s: float = 0.0


class Pod:
    """Its step ends at `ends_s`, infinite while it has nothing to do. Who drives it calls `submit`, and `finish_step` at that time."""

    def __init__(self, number: int, model: PodModel, slow_down: float = 1.0) -> None:
        """`slow_down`: how many times as long its steps take."""
        self.number = number
        self.model = model
        self.slow_down = slow_down
        self.cache = BlockCache(model.kv_tokens // model.block_size)
        self.waiting: deque[Request] = deque()
        self.running: list[Running] = []
        self.counters = Counters()
        self.busy_s = 0.0
        self.ends_s = math.inf
        self.steps = 0
        self._began_s = 0.0
        self._chunks: list[tuple[Running, int]] = []

    def submit(self, request: Request, now_s: float) -> None:
        """A request arrives. Raises PromptTooLongError for one that can never fit."""
        if request.prompt_length + request.output_length > self.model.kv_tokens - self.model.block_size:
            raise PromptTooLongError(f"{request.prompt_length} tokens and an answer do not fit into a pod of {self.model.kv_tokens}")
        self.waiting.append(request)
        if self.ends_s == math.inf:
            self._begin(now_s)
        elif not self._chunks and self.steps > 1:
            # Many steps were to go at once: they end with the one that runs.
            self.steps, self.ends_s = self._steps_until(now_s)

    def finish_step(self) -> StepResult:
        """The step that ends at `ends_s` is over, and the next one begins."""
        now_s = self.ends_s
        result = StepResult([], [], [])
        self._take_evicted(result)
        self.busy_s += now_s - self._began_s
        for running in self.running:
            if running.is_generating:
                running.computed += self.steps
                running.request.produced += self.steps
                self._name(running, result)
        for running, tokens in self._chunks:
            self._compute(running, tokens, now_s, result)
        for running in [each for each in self.running if each.request.produced >= each.request.output_length]:
            self._end(running, now_s, result)
        self._begin(now_s)
        self._take_evicted(result)
        return result

    def _take_evicted(self, result: StepResult) -> None:
        if self.cache.evicted:
            result.events.append(self.cache.evicted)
            self.cache.evicted = []

    def restart(self) -> list[Request]:
        """The engine restarts with an empty cache. Returns the requests that it had."""
        lost = [*(running.request for running in self.running), *self.waiting]
        self.running, self._chunks = [], []
        self.waiting.clear()
        self.cache.clear()
        self.counters = Counters()
        self.ends_s = math.inf
        return lost

    # A step

    def _begin(self, now_s: float) -> None:
        self._began_s = now_s
        self._chunks = []
        self._make_room()
        generating = [running for running in self.running if running.is_generating]
        self._allocate(generating, 1)
        budget = self.model.step_tokens - len(generating)
        for running in self.running:
            if not running.is_generating and budget > 0:
                budget -= self._schedule(running, budget)
        while self.waiting and budget > 0 and len(self.running) < self.model.sequences_max and (admitted := self._admit(now_s)) is not None:
            budget -= self._schedule(admitted, budget)
        prefill = sum(tokens for _, tokens in self._chunks)
        if not generating and not prefill:
            self.steps, self.ends_s = 0, math.inf
            return
        self.steps = 1 if self._chunks or self.waiting else self._steps_at_once(generating)
        self._allocate(generating, self.steps)
        self.ends_s = now_s + self._duration_s(self.steps, len(generating), sum(running.computed for running in generating), prefill)

    def _duration_s(self, steps: int, generating: int, context: int, prefill: int) -> float:
        """Of so many steps, whose context grows by a token of each request."""
        model = self.model
        contexts = steps * context + generating * steps * (steps - 1) / 2
        seconds = steps * (model.step_s + generating * model.sequence_s) + contexts * model.context_s + prefill / model.prefill_tokens_per_s
        return seconds * self.slow_down

    def _steps_at_once(self, generating: Sequence[Running]) -> int:
        """How many steps change nothing but the length of answers."""
        steps = min(STEPS_AT_ONCE, *(running.request.output_length - running.request.produced for running in generating))
        while steps > 1 and self._missing(generating, steps) > self.cache.free:
            steps //= 2
        return steps

    def _steps_until(self, now_s: float) -> tuple[int, float]:
        """How many of the steps that run are over at the end of the one that runs now, and when that is."""
        generating, context = len(self.running), sum(running.computed for running in self.running)
        for steps in range(1, self.steps):
            ends_s = self._began_s + self._duration_s(steps, generating, context, 0)
            if ends_s >= now_s:
                return steps, ends_s
        return self.steps, self.ends_s

    def _missing(self, generating: Sequence[Running], steps: int) -> int:
        return sum(running.missing(steps, self.model.block_size) for running in generating)

    def _allocate(self, generating: Sequence[Running], steps: int) -> None:
        for running in generating:
            if missing := running.missing(steps, self.model.block_size):
                self.cache.allocate(missing)
                running.unnamed += missing

    def _make_room(self) -> None:
        """Preempt until each request that generates can have its next block."""
        while self._missing([running for running in self.running if running.is_generating], 1) > self.cache.free:
            self._preempt(self.running[-1])

    def _preempt(self, running: Running) -> None:
        self.running.remove(running)
        self.cache.release(running.hashes[: running.named], running.unnamed)
        running.request.preemptions += 1
        self.waiting.appendleft(running.request)

    def _admit(self, now_s: float) -> Running | None:
        """The first of those that wait, with what the cache has of it; None where it does not fit."""
        request, size = self.waiting[0], self.model.block_size
        hashes = request.hashes(size)
        length = request.prompt_length + request.produced
        found = self.cache.match(hashes, (length - 1) // size)
        needed = -(-length // size) - found
        if needed + self.cache.kept(hashes[:found]) > self.cache.free:
            return None
        self.waiting.popleft()
        self.cache.share(hashes[:found])
        self.cache.allocate(needed)
        if not request.produced:
            request.cached_tokens = found * size
        running = Running(request, hashes, length, found * size, found, needed, now_s)
        self.running.append(running)
        return running

    def _schedule(self, running: Running, budget: int) -> int:
        tokens = min(budget, running.length - running.computed)
        self._chunks.append((running, tokens))
        return tokens

    # Its results

    def _compute(self, running: Running, tokens: int, now_s: float, result: StepResult) -> None:
        """So many tokens of its prompt were computed; with the last one comes the first of the answer."""
        request = running.request
        running.computed += tokens
        self._name(running, result)
        if running.computed < running.length:
            return
        running.is_generating = True
        request.produced += 1
        running.prefilled_s = now_s
        if request.first_token_s is None:
            request.first_token_s = now_s
            self.counters.prompt_tokens += request.prompt_length
            self.counters.cached_tokens += request.cached_tokens
            result.first_tokens.append(request)

    def _name(self, running: Running, result: StepResult) -> None:
        """Blocks that are full have a hash."""
        full = min(running.computed // self.model.block_size, len(running.hashes))
        if full <= running.named:
            return
        if self.cache.name(running.hashes[running.named : full]):
            result.events.append(StoredBlocks(running.request, running.named, full))
        running.unnamed -= full - running.named
        running.named = full

    def _end(self, running: Running, now_s: float, result: StepResult) -> None:
        self.running.remove(running)
        self.cache.release(running.hashes[: running.named], running.unnamed)
        request, counters = running.request, self.counters
        request.done_s = now_s
        counters.requests += 1
        counters.finished_prompt_tokens += request.prompt_length
        counters.prefill_tokens += request.prompt_length - request.cached_tokens
        counters.prefill_s += running.prefilled_s - running.admitted_s
        result.done.append(running.request)
