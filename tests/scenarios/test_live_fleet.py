"""The simulation's fleet in wall-clock time before the running service: real events over ZMQ, real metrics over HTTP, real picks."""

import time
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from scorer_api.client import Client
from scorer_api.fleet.engine_metrics import metrics_text
from scorer_api.fleet.fleet import Fleet, FleetRouter, Workload
from scorer_api.fleet.pod import PodModel, StepResult
from scorer_api.fleet.policies import ROUTERS
from scorer_api.fleet.request import Request
from scorer_api.fleet.results import RunResult, result_of
from scorer_api.fleet.workloads import Chats, ChatShape, shared_prefixes
from tests.engine import Engine, removed, stored
from tests.engine_server import EngineServer
from tests.running import Running
from tests.waiting import wait_until

pytestmark = [pytest.mark.live_fleet, pytest.mark.timeout(300)]

PODS = 4
SIZE = 64
MODEL = PodModel(48_000, prefill_tokens_per_s=8_000.0, block_size=SIZE)
HIT_SHARE_MAX = 0.02


def tokens_of(content: bytes) -> list[int]:
    return array("I", content).tolist()


class LiveRouter:
    """Asks the service, and is its engines: what pods publish goes out by their sockets."""

    def __init__(self, client: Client, engines: list[Engine]) -> None:
        self._client = client
        self._engines = engines
        self._names: dict[int, str] = {}

    def pick(self, request: Request, now_s: float) -> int:
        answer = self._client.route("m", tokens_of(request.prompt()))
        self._names[request.number] = answer.id
        return int(answer.pod.removeprefix("pod-"))

    def done(self, request: Request, now_s: float) -> None:
        assert self._client.route_done(self._names.pop(request.number)).known

    def on_first_token(self, request: Request) -> None:
        """The service is not told."""

    def on_events(self, pod: int, result: StepResult, now_s: float) -> None:
        events: list[dict[str, Any]] = []
        for event in result.events:
            if isinstance(event, list):
                events.append(removed(event))
                continue
            hashes, tokens = event.request.hashes(SIZE), tokens_of(event.request.sequence())
            parent = hashes[event.start - 1] if event.start else None
            events.append(stored(hashes[event.start : event.stop], tokens[SIZE * event.start : SIZE * event.stop], parent, block_size=SIZE))
        self._engines[pod].publish(*events)

    def on_restart(self, pod: int, now_s: float) -> None:
        """No pod of these workloads restarts."""

    def on_leave(self, pod: int) -> None:
        """All stay."""

    def on_join(self, pod: int) -> None:
        """All are there from the start."""

    def on_metrics(self, pod: int, text: str, measured_s: float) -> None:
        """The service asks for itself."""


class PacedFleet(Fleet):
    """A second of the run is a second of the clock."""

    def run(self) -> list[Request]:
        self._began_s = time.monotonic()
        self.behind_s = 0.0
        return super().run()

    def _next(self) -> tuple[float, str, Any]:
        at_s, kind, what = super()._next()
        early_s = at_s - (time.monotonic() - self._began_s)
        if early_s > 0:
            time.sleep(early_s)
        self.behind_s = max(self.behind_s, -early_s)
        return at_s, kind, what


def played_live(workload: Workload) -> RunResult:
    with ExitStack() as stack:
        engines = [stack.enter_context(Engine()) for _ in range(PODS)]
        apis = [stack.enter_context(EngineServer()) for _ in range(PODS)]
        specs = [engine.spec(f"pod-{number}", http=api.url) for number, (engine, api) in enumerate(zip(engines, apis, strict=True))]
        service = stack.enter_context(Running(*specs, load_interval_s="1"))
        router: FleetRouter = LiveRouter(stack.enter_context(Client(service.url)), engines)
        fleet = PacedFleet(PODS, MODEL, [router], workload)
        for pod, api in zip(fleet.pods, apis, strict=True):
            api.routes["/metrics"] = lambda _, pod=pod: (200, metrics_text(pod).encode())
        for number in range(PODS):
            service.wait_for(pod=f"pod-{number}", trust="live")
        requests = fleet.run()
        wait_until(lambda: service.metric("kv_indexer_load_requests_total", outcome="load") > PODS)
        assert fleet.behind_s < 1.0, "this machine is too slow for the workload"
    return result_of(requests, PODS, workload.until_s)


def prefixes() -> Workload:
    return shared_prefixes([(6.0, 40.0)], groups=40, prompts=0, prefix=2_048, question=320, answer=64, seed=7)


def chats() -> Workload:
    return Chats(24, ChatShape(system=256, first=1_024, more=128, answer=64, turns=8, think_s=2.0), 40.0, ramp_s=5.0, seed=7)


@pytest.mark.parametrize("workload", [prefixes, chats])
def test_the_running_service_finds_what_the_simulation_finds(workload: Callable[[], Workload]) -> None:
    """Both send the same requests; the share of prompt tokens from the caches differs by two points at most."""
    asked = workload()
    simulated = result_of(Fleet(PODS, MODEL, [ROUTERS["cost"](PODS, MODEL, 0)], asked).run(), PODS, asked.until_s)
    live = played_live(workload())
    for name, result in (("virtual time", simulated), ("running service", live)):
        figures = f"{100 * result.hit_share:.1f} % cached, TTFT {result.ttft_mean_s:.3f} s, {result.tokens_per_s:.0f} tokens/s"
        print(f"{name}: {figures}")  # noqa: T201 - shown by `make fleet-live`
    assert live.hit_share == pytest.approx(simulated.hit_share, abs=HIT_SHARE_MAX)
    assert live.hit_share > 0.4
