"""The requests that this scorer sent to each pod, and which of them the engine's own figures do not include yet.

A request counts from its pick until it is done, or until `forget_s` has passed. Once a pod's load was measured, only requests picked since then
count: the measurement includes the others.
"""

import math
from collections import OrderedDict

from msgspec import Struct, structs

from scorer_api.routing.costs import LoadEstimate, PodQueue

# A request picked less than this before a measurement had not reached the engine by then.
UNDER_WAY_S = 0.1
# Above this number the oldest requests are forgotten.
REQUESTS_MAX = 65_536
# How busy a pod is with prompts counts over about BUSY_S, and what they take of its cache over about EVICTION_S: older requests count less and less,
# and after ten times the longer one no more.
BUSY_S = 3.0
EVICTION_S = 60.0


class QueuedRequest(Struct, frozen=True, gc=False):
    """One request. `tokens`: those that its pod has to compute. `at_s`: monotonic time of the pick."""

    model: str
    pod: str
    rank: int
    tokens: int
    at_s: float


class _Lately(Struct, frozen=True, gc=False):
    """Tokens that were sent to a pod up to `at_s`, of which those of a time ago count 1/e: BUSY_S in `work`, EVICTION_S in `stored`."""

    work: float
    stored: float
    at_s: float

    def work_at(self, now_s: float) -> float:
        return self.work * math.exp((self.at_s - now_s) / BUSY_S)

    def stored_at(self, now_s: float) -> float:
        return self.stored * math.exp((self.at_s - now_s) / EVICTION_S)


_NOTHING = _Lately(0.0, 0.0, 0.0)


class _Pod:
    """Totals of one pod: of all requests, by rank; of the ones (`new`) since the last measurement, and how many others `ended` since.

    `pending`: tokens of requests that the pod has yet to announce, in the order of their picks; `pending_tokens`: their sum; `backlog`: those of them
    that were to compute at `drained_s`, which is infinite where that is to be the next look at them. `others`: the share of what waited at the
    measurement of `others_at_s` that others sent.
    """

    __slots__ = (
        "backlog",
        "drained_s",
        "ended",
        "has_announced",
        "measured_at_s",
        "new",
        "new_tokens",
        "others",
        "others_at_s",
        "pending",
        "pending_tokens",
        "ranks",
        "tokens",
    )

    def __init__(self, now_s: float) -> None:
        self.backlog = 0.0
        self.drained_s = now_s
        self.pending: OrderedDict[str, int] = OrderedDict()
        self.pending_tokens = 0
        self.has_announced = False
        self.others = 0.0
        self.others_at_s = -math.inf
        self.tokens = 0
        self.ranks: dict[int, int] = {}
        self.new: OrderedDict[str, QueuedRequest] = OrderedDict()
        self.new_tokens = 0
        self.ended = 0
        self.measured_at_s = -math.inf


class Queues:
    """Times are of the monotonic clock, and never decrease."""

    def __init__(self, forget_s: float, requests_max: int = REQUESTS_MAX) -> None:
        self._forget_s = forget_s
        self._requests_max = requests_max
        self._sent: OrderedDict[str, QueuedRequest] = OrderedDict()
        self._pods: dict[tuple[str, str], _Pod] = {}
        self._lately: OrderedDict[tuple[str, str], _Lately] = OrderedDict()

    def __len__(self) -> int:
        """How many requests count now."""
        return len(self._sent)

    def add(self, name: str, request: QueuedRequest) -> None:
        """A request was picked. `name` is unique."""
        self._sent[name] = request
        pod = self._pods.setdefault((request.model, request.pod), _Pod(request.at_s))
        pod.tokens += request.tokens
        pod.ranks[request.rank] = pod.ranks.get(request.rank, 0) + 1
        pod.new[name] = request
        pod.new_tokens += request.tokens
        pod.backlog += request.tokens
        key = request.model, request.pod
        lately, now_s = self._lately.get(key, _NOTHING), request.at_s
        self._lately[key] = _Lately(lately.work_at(now_s) + request.tokens, lately.stored_at(now_s) + request.tokens, now_s)
        self._lately.move_to_end(key)

    def await_announcement(self, name: str) -> None:
        """The pod will announce the request's last block once it has computed its prompt."""
        request = self._sent[name]
        pod = self._pods[request.model, request.pod]
        pod.pending[name] = request.tokens
        pod.pending_tokens += request.tokens

    def computed(self, name: str) -> None:
        """The pod has announced the request's last block: it has computed its prompt, and those that were sent there before.

        So the backlog is known again, whatever the rate made of it. One that does not count is no mistake.
        """
        request = self._sent.get(name)
        if request is None:
            return
        pod = self._pods[request.model, request.pod]
        if name not in pod.pending:
            return
        while True:
            first, tokens = pod.pending.popitem(last=False)
            pod.pending_tokens -= tokens
            if first == name:
                break
        pod.has_announced = True
        pod.backlog = pod.pending_tokens
        pod.drained_s = math.inf

    def done(self, name: str) -> bool:
        """Stop counting the request. Returns whether it counted."""
        return self._remove(name, has_ended=True)

    def relieve(self, name: str) -> None:
        """Another pod computes the request's prompt: it counts as a request without tokens. One that does not count is no mistake."""
        request = self._sent.get(name)
        if request is None:
            return
        self._sent[name] = relieved = structs.replace(request, tokens=0)
        pod = self._pods[request.model, request.pod]
        pod.tokens -= request.tokens
        pod.pending_tokens -= pod.pending.pop(name, 0)
        pod.backlog = max(0.0, pod.backlog - request.tokens)
        key = request.model, request.pod
        lately = self._lately[key]
        self._lately[key] = structs.replace(lately, work=max(0.0, lately.work - request.tokens))
        if name in pod.new:
            pod.new[name] = relieved
            pod.new_tokens -= request.tokens

    def _remove(self, name: str, *, has_ended: bool) -> bool:
        request = self._sent.pop(name, None)
        if request is None:
            return False
        pod = self._pods[request.model, request.pod]
        pod.tokens -= request.tokens
        pod.pending_tokens -= pod.pending.pop(name, 0)
        pod.ranks[request.rank] -= 1
        if not pod.ranks[request.rank]:
            del pod.ranks[request.rank]
        if pod.new.pop(name, None) is not None:
            pod.new_tokens -= request.tokens
        elif has_ended:
            pod.ended += 1
        if not pod.ranks:
            del self._pods[request.model, request.pod]
        return True

    def expire(self, now_s: float) -> tuple[int, int]:
        """Forget requests whose time has passed, and the oldest above the limit. Returns how many of each."""
        late = excess = 0
        while self._sent:
            name = next(iter(self._sent))
            if self._sent[name].at_s + self._forget_s <= now_s:
                late += 1
            elif len(self._sent) > self._requests_max:
                excess += 1
            else:
                break
            self._remove(name, has_ended=False)
        while self._lately:
            key, lately = next(iter(self._lately.items()))
            if lately.at_s + 10 * EVICTION_S > now_s:
                break
            del self._lately[key]
        return late, excess

    def ahead(self, model: str, pod: str, measured_at_s: float | None) -> tuple[int, int]:
        """Tokens and number of the requests that the engine's figures do not include. `measured_at_s`: when they were measured, None if unknown.

        Requests that the figures include and that are done since count as -1.
        """
        found = self._pods.get((model, pod))
        if found is None:
            return 0, 0
        if measured_at_s is None:
            return found.tokens, sum(found.ranks.values())
        if measured_at_s > found.measured_at_s:
            found.measured_at_s = measured_at_s
            found.ended = 0
            seen_s = measured_at_s - UNDER_WAY_S
            while found.new and next(iter(found.new.values())).at_s <= seen_s:
                found.new_tokens -= found.new.popitem(last=False)[1].tokens
        return found.new_tokens, len(found.new) - found.ended

    def look(self, model: str, pod: str, now_s: float, load: LoadEstimate, measured_at_s: float | None, others: float = 0.0) -> PodQueue:
        """A pod's queue. `measured_at_s`: when its load was measured, None where that is a guess. `others`: see `OtherSenders`.

        Of requests from here, those of the prompts are queued that it has not announced, less what it can have computed of them; of others', what
        waited when its load was measured, beyond the requests from here. A pod that announces nothing has what waited and what was sent since.
        Since then others have sent there what was sent from here, `others` times: they see what is seen here.
        """
        found = self._pods.get((model, pod))
        busy = renewed = 0.0
        if (lately := self._lately.get((model, pod))) is not None:
            busy = (1 + others) * lately.work_at(now_s) / (BUSY_S * load.rate)
            renewed = (1 + others) * lately.stored_at(now_s) / load.kv_tokens
        if found is None:
            return PodQueue(load.waiting_tokens, load.waiting, busy=busy, renewed=renewed)
        new_tokens, new_count = self.ahead(model, pod, measured_at_s)
        found.backlog = min(found.tokens, max(0.0, found.backlog - load.rate * max(0.0, now_s - found.drained_s)))
        found.drained_s = now_s
        queued, waiting = found.backlog, load.waiting
        if measured_at_s is None:
            queued = max(queued, load.waiting_tokens + found.tokens)
        elif not found.has_announced:
            if load.waiting:
                queued = max(queued, load.waiting_tokens + found.new_tokens)
        else:
            if measured_at_s != found.others_at_s:
                found.others_at_s = measured_at_s
                found.others = self._share_of_others(found, load.waiting, measured_at_s)
            queued += found.others * load.waiting_tokens
            # The first one is being computed.
            waiting = max(0, len(found.pending) - 1) + found.others * load.waiting
            if others:
                count, tokens = self._pending_since(found, measured_at_s)
                queued += others * min(tokens, queued)
                waiting += others * count
        return PodQueue(queued, waiting, len(found.pending), (1 + others) * new_tokens, (1 + others) * new_count, busy, renewed)

    def _pending_since(self, pod: _Pod, at_s: float) -> tuple[int, int]:
        """Number and tokens of the requests from here that were sent there since, and that it has not announced."""
        count = tokens = 0
        for name in reversed(pod.pending):
            if self._sent[name].at_s <= at_s:
                break
            count, tokens = count + 1, tokens + pod.pending[name]
        return count, tokens

    def _share_of_others(self, pod: _Pod, waiting: float, measured_at_s: float) -> float:
        """The share of what waited at a measurement that others sent: what is beyond the requests from here that are pending since before."""
        if not waiting:
            return 0.0
        seen = 0
        for name in pod.pending:
            if self._sent[name].at_s > measured_at_s:
                break
            seen += 1
        return max(0.0, 1 - seen / waiting)

    def at_rank(self, model: str, pod: str, rank: int) -> int:
        """How many requests count at one rank of a pod."""
        found = self._pods.get((model, pod))
        return 0 if found is None else found.ranks.get(rank, 0)
