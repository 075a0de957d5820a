"""Routers to compare with, in the few lines that make each what it is. What they know of prefixes, loads and their own picks is exact where nothing
else is said: no implementation of theirs is better."""

import random
from collections import OrderedDict
from collections.abc import Callable, Sequence

from xxhash import xxh3_64_intdigest

from scorer_api.fleet.pod import PodModel, StepResult
from scorer_api.fleet.request import Request


class Loads:
    """The figures of each pod's last scrape: running and waiting requests, and the used part of the cache."""

    def __init__(self, pods: int) -> None:
        self.running, self.waiting, self.kv_usage = [0.0] * pods, [0.0] * pods, [0.0] * pods

    def note(self, pod: int, text: str) -> None:
        values = dict(line.rsplit(" ", 1) for line in text.splitlines())
        self.running[pod] = float(values["vllm:num_requests_running"])
        self.waiting[pod] = float(values["vllm:num_requests_waiting"])
        self.kv_usage[pod] = float(values["vllm:kv_cache_usage_perc"])


class Baseline:
    """Sent requests by pod, the last loads, and what each pod's events say that it holds."""

    def __init__(self, pods: int, model: PodModel, seed: int = 0) -> None:
        self.pods = list(range(pods))
        """Those that requests can be sent to."""
        self.random = random.Random(seed)
        self.loads = Loads(pods)
        self.open: list[dict[int, Request]] = [{} for _ in range(pods)]
        self.uncached: list[dict[int, int]] = [{} for _ in range(pods)]
        self.held: list[set[int]] = [set() for _ in range(pods)]
        self.expected: list[OrderedDict[int, float]] = [OrderedDict() for _ in range(pods)]
        self.size = model.block_size
        self.kv_blocks = model.kv_tokens // model.block_size
        self.turn = 0

    def choose(self, request: Request) -> int:
        raise NotImplementedError

    def pick(self, request: Request, now_s: float) -> int:
        """The number of the pod that it is sent to."""
        pod = self.choose(request)
        self.open[pod][request.number] = request
        self.uncached[pod][request.number] = request.prompt_length - self.matched(pod, request)
        for block in request.hashes(self.size)[: request.prompt_length // self.size]:
            self.expected[pod][block] = now_s + 2.0
            self.expected[pod].move_to_end(block)
        for expected in self.expected:
            while expected and next(iter(expected.values())) < now_s:
                expected.popitem(last=False)
        return pod

    def done(self, request: Request, now_s: float) -> None:
        self.open[request.pod].pop(request.number, None)
        self.uncached[request.pod].pop(request.number, None)

    def on_first_token(self, request: Request) -> None:
        self.uncached[request.pod].pop(request.number, None)

    def on_events(self, pod: int, result: StepResult, now_s: float) -> None:
        for event in result.events:
            if isinstance(event, list):
                self.held[pod].difference_update(event)
            else:
                self.held[pod].update(event.request.hashes(self.size)[event.start : event.stop])

    def on_restart(self, pod: int, now_s: float) -> None:
        self.held[pod].clear()
        self.expected[pod].clear()

    def on_leave(self, pod: int) -> None:
        self.pods.remove(pod)

    def on_join(self, pod: int) -> None:
        self.pods = sorted((*self.pods, pod))

    def on_metrics(self, pod: int, text: str, measured_s: float) -> None:
        self.loads.note(pod, text)

    def matched(self, pod: int, request: Request) -> int:
        """Tokens of the prompt that the pod holds, or is about to."""
        held, expected = self.held[pod], self.expected[pod]
        blocks = (request.prompt_length - 1) // self.size
        hashes = request.hashes(self.size)
        return self.size * next((number for number in range(blocks) if hashes[number] not in held and hashes[number] not in expected), blocks)

    def least(self, cost: Callable[[int], float], pods: Sequence[int] | None = None) -> int:
        """The pod with the lowest cost, one of the equal ones by chance."""
        return min(self.pods if pods is None else pods, key=lambda pod: (cost(pod), self.random.random()))


class RandomPod(Baseline):
    """Any pod."""

    def choose(self, request: Request) -> int:
        return self.random.choice(self.pods)


class RoundRobin(Baseline):
    """In turn, as a plain Kubernetes service does over many connections."""

    def choose(self, request: Request) -> int:
        self.turn += 1
        return self.pods[self.turn % len(self.pods)]


class LeastRequests(Baseline):
    """The fewest open requests of this router."""

    def choose(self, request: Request) -> int:
        return self.least(lambda pod: len(self.open[pod]))


class LeastWaiting(Baseline):
    """The fewest waiting requests by the engine's metrics, then the fewest running ones."""

    def choose(self, request: Request) -> int:
        return self.least(lambda pod: 1_000 * self.loads.waiting[pod] + self.loads.running[pod])


class SessionAffinity(Baseline):
    """The same pod for a user, by hash."""

    def choose(self, request: Request) -> int:
        return self.pods[xxh3_64_intdigest(request.user.to_bytes(8, "little")) % len(self.pods)]


class Approximate(Baseline):
    """Remembers which prompts it sent where, up to the size of a pod's cache, and knows no events. The longest match, then the fewest requests."""

    def __init__(self, pods: int, model: PodModel, seed: int = 0) -> None:
        super().__init__(pods, model, seed)
        self._sent: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(pods)]

    def choose(self, request: Request) -> int:
        hashes = request.hashes(self.size)[: (request.prompt_length - 1) // self.size]
        pod = self.least(lambda pod: (-self._match(pod, hashes), len(self.open[pod])))  # type: ignore[arg-type,return-value]
        sent = self._sent[pod]
        for block in hashes:
            sent[block] = None
            sent.move_to_end(block)
        while len(sent) > self.kv_blocks:
            sent.popitem(last=False)
        return pod

    def _match(self, pod: int, hashes: Sequence[int]) -> int:
        sent = self._sent[pod]
        return next((number for number, block in enumerate(hashes) if block not in sent), len(hashes))


class WeightedScorers(Baseline):
    """llm-d's profile of scorers: free cache and a short queue count 2, the share of the prompt that is held 3, by events and its own picks."""

    WEIGHTS = (2.0, 2.0, 3.0)

    def choose(self, request: Request) -> int:
        waiting = self.loads.waiting
        most, least = max(waiting[pod] for pod in self.pods), min(waiting[pod] for pod in self.pods)
        kv, queue, prefix = self.WEIGHTS

        def score(pod: int) -> float:
            short = 1.0 if most == least else (most - waiting[pod]) / (most - least)
            return kv * (1 - self.loads.kv_usage[pod]) + queue * short + prefix * self.matched(pod, request) / request.prompt_length

        return self.least(lambda pod: -score(pod))


class AffinityFilter(Baseline):
    """llm-d's filter: of the pods that hold four fifths of the prompt or more, else of all, the one with the fewest uncached tokens under way."""

    HELD = 0.8

    def choose(self, request: Request) -> int:
        holding = [pod for pod in self.pods if self.matched(pod, request) >= self.HELD * request.prompt_length]
        return self.least(lambda pod: sum(self.uncached[pod].values()), holding or None)


class OverlapCost(Baseline):
    """Dynamo's cost: blocks to prefill of this prompt and of those under way, and the blocks of all that its requests use."""

    def choose(self, request: Request) -> int:
        def cost(pod: int) -> float:
            prefill = request.prompt_length - self.matched(pod, request) + sum(self.uncached[pod].values())
            context = sum(each.prompt_length + each.produced for each in self.open[pod].values())
            return (prefill + context) / self.size

        return self.least(cost)


class BatchProduct(Baseline):
    """LMetric: uncached tokens under way with this prompt's, times the size of the batch with this request."""

    def choose(self, request: Request) -> int:
        def cost(pod: int) -> float:
            prefill = request.prompt_length - self.matched(pod, request) + sum(self.uncached[pod].values())
            return prefill * (len(self.open[pod]) + 1)

        return self.least(cost)
