"""What a run was like for its users and for the fleet."""

import math
from collections.abc import Sequence
from heapq import merge
from statistics import fmean

from msgspec import Struct

from scorer_api.fleet.request import Request


class RunResult(Struct, frozen=True):
    """A run's figures.

    `ttft_s`: times to the first token of all requests, sorted. `tokens_per_s`: of answers, from the first arrival to the last token, or until the
    users stop asking. `hit_share`: cached tokens of all prompt tokens; `lost_share`: those that the router expected to be cached and were not.
    `imbalance`: what the busiest pod computed, to what all did on average. `pod_requests`: by pod; `user_pods`: those of user 0, in the later half of
    the run.
    """

    ttft_s: list[float]
    tokens_per_s: float
    hit_share: float
    lost_share: float
    imbalance: float
    preemptions: int
    duration_s: float
    pod_requests: list[int]
    user_pods: list[int]

    @property
    def ttft_mean_s(self) -> float:
        return sum(self.ttft_s) / len(self.ttft_s)

    def ttft_at_s(self, share: float) -> float:
        """The time that this share of the requests got their first token in."""
        return self.ttft_s[min(len(self.ttft_s) - 1, int(share * len(self.ttft_s)))]


def result_of(requests: Sequence[Request], pods: int, until_s: float = math.inf) -> RunResult:
    """Of a run that is over. `until_s`: the workload's, see `Workload`."""
    ttft_s = sorted(request.first_token_s - request.arrives_s for request in requests if request.first_token_s is not None)
    began_s = requests[0].arrives_s
    ended_s = max(request.done_s for request in requests if request.done_s is not None)
    prompts = sum(request.prompt_length for request in requests)
    computed, sent, user = [0] * pods, [0] * pods, [0] * pods
    for number, request in enumerate(requests):
        computed[request.pod] += request.prompt_length - request.cached_tokens + request.output_length
        sent[request.pod] += 1
        user[request.pod] += request.user == 0 and 2 * number >= len(requests)
    return RunResult(
        ttft_s,
        sum(_answered(request, until_s) for request in requests) / (min(ended_s, until_s) - began_s),
        sum(request.cached_tokens for request in requests) / prompts,
        sum(max(0, request.predicted_tokens - request.cached_tokens) for request in requests) / prompts,
        max(computed) / (sum(computed) / pods),
        sum(request.preemptions for request in requests),
        ended_s - began_s,
        sent,
        user,
    )


def _answered(request: Request, until_s: float) -> float:
    """Tokens of its answer by then, which are generated evenly from its first token on."""
    first_s, done_s = request.first_token_s, request.done_s
    if first_s is None or done_s is None or first_s >= until_s:
        return 0.0
    return request.output_length if done_s <= until_s else request.output_length * (until_s - first_s) / (done_s - first_s)


def merged(results: Sequence[RunResult]) -> RunResult:
    """Of several runs of one fleet: all times to the first token, sums of counts, means of the other figures."""
    return RunResult(
        list(merge(*(result.ttft_s for result in results))),
        fmean(result.tokens_per_s for result in results),
        fmean(result.hit_share for result in results),
        fmean(result.lost_share for result in results),
        fmean(result.imbalance for result in results),
        sum(result.preemptions for result in results),
        fmean(result.duration_s for result in results),
        [sum(counts) for counts in zip(*(result.pod_requests for result in results), strict=True)],
        [sum(counts) for counts in zip(*(result.user_pods for result in results), strict=True)],
    )
