"""The project's own router in the simulation: its index, its scores, its policies and its reading of loads, with a clock passed in."""

from collections.abc import Sequence

from msgspec import structs

from indexer.config.settings import Settings
from indexer.core.block_keys import TOKEN_BYTES
from indexer.core.events import Cleared, Event, Removed, Stored, Tier
from indexer.core.names import StreamKey, Trust
from indexer.core.stream_state import StreamState
from indexer.engines.load_metrics import LoadMeter
from scorer_api.fleet.pod import PodModel, StepResult
from scorer_api.fleet.request import Request
from scorer_api.index.prompt import Prompt
from scorer_api.index.view import View
from scorer_api.routing.pick import PickRequest
from scorer_api.routing.policies import PolicyName
from scorer_api.routing.router import Router
from scorer_api.routing.speculative_scores import BlocksOutcome

MODEL = "fleet"


class _Counters:
    """Counts nothing: what matters is measured from outside."""

    def blocks(self, outcome: BlocksOutcome, count: int) -> None:
        pass

    def forgotten(self, why: str, count: int) -> None:
        pass


class OwnRouter:
    """`policy`: the service's default where it is None. `seed`: of its random choices."""

    def __init__(self, pods: int, model: PodModel, seed: int = 0, policy: PolicyName | None = None) -> None:
        settings = Settings()
        routing = structs.replace(settings.limits.routing, route_seed=seed)
        self.settings = structs.replace(settings, limits=structs.replace(settings.limits, routing=routing))
        self._now_s = 0.0
        self._view = View(self.settings, clock=lambda: self._now_s)
        self._policy = policy
        self._model = model
        self._keys = [StreamKey(MODEL, f"pod-{number}", 0) for number in range(pods)]
        self._numbers = {key.pod: number for number, key in enumerate(self._keys)}
        self._router = Router(self.settings, self._view, _Counters())
        self._names: dict[int, str] = {}
        self._left: set[str] = set()
        self._states: list[StreamState] = []
        self._meters: list[LoadMeter] = []
        for key in self._keys:
            self._view.open(key)
            self._view.set_trust(key, Trust.LIVE)
            self._states.append(StreamState(MODEL, self.settings.hash_seed))
            self._meters.append(LoadMeter())

    def pick(self, request: Request, now_s: float) -> int:
        """The number of the pod that it is sent to."""
        self._now_s = now_s
        prompt = Prompt(MODEL, request.prompt())
        session = f"user-{request.user}"
        only = None if not self._left else self._numbers.keys() - self._left
        pick = self._router.pick(prompt, PickRequest(only=only, policy=self._policy, session_id=session, output_tokens=None), now_s)
        self._names[request.number] = pick.id
        request.predicted_tokens = pick.reasons[pick.order[0]].matched_tokens
        return self._numbers[pick.order[0]]

    def done(self, request: Request, now_s: float) -> None:
        """Its answer has ended."""
        self._now_s = now_s
        self._router.done(self._names.pop(request.number))

    def on_first_token(self, request: Request) -> None:
        """The service is not told."""

    def on_events(self, pod: int, result: StepResult, now_s: float) -> None:
        """What the pod published arrives."""
        self._now_s = now_s
        size = self._model.block_size
        events: list[Event] = []
        for event in result.events:
            if isinstance(event, list):
                events.append(Removed(event, Tier.GPU, None))
                continue
            hashes = event.request.hashes(size)
            tokens = event.request.sequence()[TOKEN_BYTES * size * event.start : TOKEN_BYTES * size * event.stop]
            parent = hashes[event.start - 1] if event.start else None
            events.append(Stored(hashes[event.start : event.stop], parent, tokens, size, Tier.GPU, None, None, False, None, None))
        self._apply(pod, events, now_s)

    def on_restart(self, pod: int, now_s: float) -> None:
        """The pod restarted: its cache is empty."""
        self._apply(pod, [Cleared()], now_s)
        self._meters[pod] = LoadMeter()

    def on_leave(self, pod: int) -> None:
        """The pod gets no more requests."""
        self._left.add(self._keys[pod].pod)

    def on_join(self, pod: int) -> None:
        """The pod gets requests from now on."""
        self._left.discard(self._keys[pod].pod)

    def on_metrics(self, pod: int, text: str, measured_s: float) -> None:
        """The answer of the pod's `/metrics`."""
        self._view.loads.note(MODEL, self._keys[pod].pod, self._meters[pod].read(text, measured_s), measured_s)

    def _apply(self, pod: int, events: Sequence[Event], now_s: float) -> None:
        key, state = self._keys[pod], self._states[pod]
        change = state.apply(events, now_s)
        self._view.append(key, state.shape, change)
