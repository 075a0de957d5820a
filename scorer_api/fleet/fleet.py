"""The clock of a run: arrivals, steps of pods, events on their way, scrapes, in the order of their times."""

import heapq
import math
import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from msgspec import Struct

from scorer_api.fleet.engine_metrics import metrics_text
from scorer_api.fleet.pod import Pod, PodModel, StepResult
from scorer_api.fleet.request import Request


class FleetRouter(Protocol):
    """What sends requests to pods. Times are of the run."""

    def pick(self, request: Request, now_s: float) -> int: ...

    def done(self, request: Request, now_s: float) -> None: ...

    def on_first_token(self, request: Request) -> None: ...

    def on_events(self, pod: int, result: StepResult, now_s: float) -> None: ...

    def on_restart(self, pod: int, now_s: float) -> None: ...

    def on_leave(self, pod: int) -> None: ...

    def on_join(self, pod: int) -> None: ...

    def on_metrics(self, pod: int, text: str, measured_s: float) -> None: ...


class Workload(Protocol):
    """Requests in the order of their arrivals, and those that follow from an answer.

    `until_s`: when the users of a closed loop stop asking, infinite for others. What is generated later says how long the last answers happen to be.
    """

    @property
    def until_s(self) -> float: ...

    def first(self) -> list[Request]: ...

    def next(self, done: Request) -> list[Request]: ...


class Conditions(Struct, frozen=True):
    """What is not ideal.

    `event_delay_s`: from the end of a step to the index. `event_loss`: share of messages that are lost, and arrive with the next one that is not.
    `scrape_s`: between two scrapes. `load_age_s`: how much later their figures arrive. `slow_pods`: number of a pod and how many times as long its
    steps take. `restarts`: seconds and a pod. `leaves`: the same, from when on a pod gets no more requests, and answers what it has. `joins`: from
    when on it gets any.
    """

    event_delay_s: float = 0.005
    event_loss: float = 0.0
    scrape_s: float = 1.0
    load_age_s: float = 0.02
    slow_pods: tuple[tuple[int, float], ...] = ()
    restarts: tuple[tuple[float, int], ...] = ()
    leaves: tuple[tuple[float, int], ...] = ()
    joins: tuple[tuple[float, int], ...] = ()


class Fleet:
    """`run` plays a workload against so many pods behind `routers`, each of which gets every so many-th request."""

    def __init__(
        self, pods: int, model: PodModel, routers: Sequence[FleetRouter], workload: Workload, conditions: Conditions | None = None, seed: int = 0
    ) -> None:
        self.conditions = conditions or Conditions()
        slow_pods = dict(self.conditions.slow_pods)
        self.pods = [Pod(number, model, slow_pods.get(number, 1.0)) for number in range(pods)]
        self.requests: list[Request] = []
        self._routers = routers
        self._workload = workload
        self._random = random.Random(seed)
        self._agenda: list[tuple[float, int, str, Any]] = []
        self._added = 0
        self._router_of: dict[int, FleetRouter] = {}
        self._open = 0
        self._lost: list[list[StepResult]] = [[] for _ in self.pods]

    def run(self) -> list[Request]:
        """Until each request has its answer. Returns all requests, in the order of their arrivals."""
        for request in self._workload.first():
            self._arrive_later(request)
        for number in range(len(self.pods)):
            self._add(self.conditions.scrape_s * (number + 1) / len(self.pods), "scrape", number)
        for kind, changes in (("restart", self.conditions.restarts), ("leave", self.conditions.leaves), ("join", self.conditions.joins)):
            for at_s, pod in changes:
                self._add(at_s, kind, pod)
        for _, pod in self.conditions.joins:
            self._leave(pod, 0.0)
        steps: dict[str, Callable[[Any, float], None]] = {
            "arrive": self._arrive,
            "scrape": self._scrape,
            "events": self._deliver,
            "metrics": self._tell,
            "restart": self._restart,
            "leave": self._leave,
            "join": self._join,
        }
        while self._open:
            at_s, kind, what = self._next()
            if kind == "step":
                pod, ends_s = what
                if pod.ends_s == ends_s:
                    self._finish_step(pod, at_s)
            else:
                steps[kind](what, at_s)
        return self.requests

    def _next(self) -> tuple[float, str, Any]:
        """What comes next: its time, its kind, and what it is about."""
        at_s, _, kind, what = heapq.heappop(self._agenda)
        return at_s, kind, what

    def _add(self, at_s: float, kind: str, what: Any) -> None:
        self._added += 1
        heapq.heappush(self._agenda, (at_s, self._added, kind, what))

    def _arrive_later(self, request: Request) -> None:
        self._open += 1
        self._add(request.arrives_s, "arrive", request)

    def _arrive(self, request: Request, now_s: float) -> None:
        self.requests.append(request)
        self._send(request, now_s)

    def _send(self, request: Request, now_s: float) -> None:
        router = self._routers[request.number % len(self._routers)]
        self._router_of[request.number] = router
        request.pod = router.pick(request, now_s)
        pod = self.pods[request.pod]
        before_s = pod.ends_s
        pod.submit(request, now_s)
        if pod.ends_s != before_s:
            self._add(pod.ends_s, "step", (pod, pod.ends_s))

    def _finish_step(self, pod: Pod, now_s: float) -> None:
        result = pod.finish_step()
        if pod.ends_s != math.inf:
            self._add(pod.ends_s, "step", (pod, pod.ends_s))
        if result.events:
            lost = self._lost[pod.number]
            lost.append(result)
            if self._random.random() >= self.conditions.event_loss:
                for each in lost:
                    self._add(now_s + self.conditions.event_delay_s, "events", (pod.number, each))
                lost.clear()
        for request in result.first_tokens:
            self._router_of[request.number].on_first_token(request)
        for request in result.done:
            self._router_of.pop(request.number).done(request, now_s)
            self._open -= 1
            for following in self._workload.next(request):
                self._arrive_later(following)

    def _deliver(self, what: tuple[int, StepResult], now_s: float) -> None:
        for router in self._routers:
            router.on_events(*what, now_s)

    def _scrape(self, number: int, now_s: float) -> None:
        self._add(now_s + self.conditions.load_age_s, "metrics", (number, metrics_text(self.pods[number]), now_s))
        self._add(now_s + self.conditions.scrape_s, "scrape", number)

    def _tell(self, what: tuple[int, str, float], now_s: float) -> None:
        number, text, measured_s = what
        for router in self._routers:
            router.on_metrics(number, text, measured_s)

    def _restart(self, number: int, now_s: float) -> None:
        lost = self.pods[number].restart()
        for router in self._routers:
            router.on_restart(number, now_s)
        for request in lost:
            self._router_of[request.number].done(request, now_s)
            request.produced = 0
            request.first_token_s = None
            self._send(request, now_s)

    def _leave(self, number: int, now_s: float) -> None:
        for router in self._routers:
            router.on_leave(number)

    def _join(self, number: int, now_s: float) -> None:
        for router in self._routers:
            router.on_join(number)
