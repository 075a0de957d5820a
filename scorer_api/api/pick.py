"""Picks a pod for a client's own body, for gateways that pass it on as it is.

Whatever an engine could serve gets a pod: what cannot be looked up is picked by load.
"""

import asyncio
import time

import msgspec
from msgspec import Struct

from indexer.compiled import core
from indexer.config.settings import Settings
from indexer.http.negotiation import JSON
from indexer.http.problems import Problem
from indexer.tracing.current import current_span
from scorer_api.api.client_body import ByLoad, ClientBody, read_client_body, tokens_of
from scorer_api.api.decode import REGULAR_BYTES_MAX
from scorer_api.api.destinations import Destinations
from scorer_api.api.pick_metrics import PickMetrics
from scorer_api.api.pod_apis import PodApis
from scorer_api.api.resolve import RequestResolver, unknown_model
from scorer_api.api.schemas import ScoreRequest
from scorer_api.index.engine_hashes import EngineHashes
from scorer_api.index.prompt import Query
from scorer_api.index.view import View
from scorer_api.routing.metrics import RouteMetrics
from scorer_api.routing.pick import NoPodError, Pick, PickRequest, UnknownModelError
from scorer_api.routing.router import Router
from scorer_api.tokens.token_lists import LIST_BYTES_MIN, take_tokens

RETRY_AFTER_S = 1
# Pods of which no address is known are passed over, at most so many of one pick.
UNREACHED_MAX = 16


class Asked(Struct, frozen=True):
    """What a gateway asks. `body`: None where it is not to be read, for the reason in `by_load`. `path`: the engine's.

    `model`, `session_id`: what headers say of them, None where they do not. `sent_as`: the model that the pod is asked for in place of the body's.
    `fallbacks`: the most of them, None for the setting. `subset`: endpoints to choose from, each `address:port` or an address for all its ports.
    """

    body: bytes | None
    path: str = ""
    by_load: ByLoad | None = None
    model: str | None = None
    session_id: str | None = None
    is_anthropic: bool = False
    sent_as: str | None = None
    fallbacks: int | None = None
    subset: tuple[str, ...] | None = None


class Picked(Struct, frozen=True):
    """`destination`, `fallbacks`: `address:port`, the fallbacks in the order in which to try them. `picked_for`: see `Pick`.

    `by_load`: why it was picked by load; None where it was picked by its prompt. `matched_tokens`: how many of the prompt's tokens the pod is
    expected to take from its cache, in blocks of `block_size`, None where that is unknown. `prefill`: where the pod is that
    is to compute the prompt first, if there is one.
    """

    id: str
    pod: str
    destination: str
    fallbacks: list[str]
    picked_for: str
    by_load: ByLoad | None
    matched_tokens: int
    block_size: int | None
    prefill: str | None = None


class Picker:
    """Picks for gateways. It counts picks as they are made, and those by load by reason; refusals are the caller's to count."""

    def __init__(
        self,
        settings: Settings,
        view: View,
        resolver: RequestResolver,
        router: Router,
        apis: PodApis,
        metrics: PickMetrics,
        route_metrics: RouteMetrics,
    ) -> None:
        self._settings = settings
        self._view = view
        self._resolver = resolver
        self._router = router
        self._apis = apis
        self._metrics = metrics
        self._route_metrics = route_metrics
        self._destinations = Destinations(settings.engine_networks)

    async def pick(self, asked: Asked) -> Picked:
        """Raises Problem: 400 for malformed JSON, 404 for an unknown model, 503 where no pod can be picked."""
        started_s = time.perf_counter()
        if asked.body:
            body = read_client_body(asked.body, asked.path, is_anthropic=asked.is_anthropic)
        else:
            body = ClientBody(None, 0, by_load=asked.by_load or "no_body")
        query, by_load = await self._query(body, asked)
        request = PickRequest(
            only=None if asked.subset is None else await self._pods_in(asked.subset, query.model),
            prefill=self._apis.prefill_pods(query.model),
            session_id=asked.session_id or body.session_id,
            output_tokens=body.output_tokens,
            tokens_estimate=None if by_load is None else body.tokens_estimate,
        )
        fallbacks = self._settings.pick_fallbacks if asked.fallbacks is None else asked.fallbacks
        picked = await self._reachable(query, request, by_load, fallbacks)
        span = current_span.get()
        self._metrics.note_pick(by_load, time.perf_counter() - started_s, None if span is None else span.exemplar())
        if span is not None:
            span.note({"kv.model": query.model, "kv.pod": picked.pod, "kv.picked_for": picked.picked_for, "kv.matched_tokens": picked.matched_tokens})
            span.note({"kv.by_load": by_load or ""})
        return picked

    def prefilled(self, name: str) -> None:
        """The request's prompt is computed."""
        self._router.prefilled(name)

    def done(self, name: str) -> None:
        """The request is over. One that does not count is no mistake."""
        self._route_metrics.note_done(is_known=self._router.done(name))

    # What to look up

    async def _query(self, body: ClientBody, asked: Asked) -> tuple[Query, ByLoad | None]:
        """What is looked up, and why nothing is, where that is so. Raises Problem 404."""
        named = asked.sent_as or body.model or asked.model or self._only_model()
        model = None if named is None else self._resolver.base_model(named)
        if named is None or model is None:
            return self._of_any_model(named)
        if body.request is None:
            return EngineHashes(model, ()), body.by_load or "no_body"
        try:
            async with asyncio.timeout(self._settings.limits.routing.pick_timeout_s):
                request = msgspec.structs.replace(body.request, model=named)
                if body.tokens is not None:
                    request = await self._with_tokens(request, body.tokens)
                return (await self._resolver.resolve(request)).prompt, None
        except TimeoutError:
            return EngineHashes(model, ()), "too_slow"
        except Problem as problem:
            return EngineHashes(model, ()), "no_tokens" if problem.status == 502 else "wrong_value"

    def _only_model(self) -> str | None:
        models = self._view.models()
        return next(iter(models)) if len(models) == 1 else None

    def _of_any_model(self, named: str | None) -> tuple[Query, ByLoad]:
        """Of the model with most pods, if requests of an unknown one are picked too. Raises Problem: 404, or 503 where there is no pod at all."""
        models = self._view.models()
        if not models:
            raise Problem(503, "no pod is registered", retry_after_s=RETRY_AFTER_S)
        if self._settings.pick_unknown_model == "refuse":
            raise Problem(404, "model: there are several, and the request names none") if named is None else unknown_model(named)
        return EngineHashes(max(sorted(models), key=lambda model: len(models[model])), ()), "unknown_model"

    async def _with_tokens(self, request: ScoreRequest, content: bytes) -> ScoreRequest:
        """The request with its tokens. Others have their turn while many are read. Raises Problem 422."""
        if core is not None and len(content) <= REGULAR_BYTES_MAX and (packed := core.pack_json_tokens(content)) is not None:
            return msgspec.structs.replace(request, token_ids=packed)
        if len(content) >= LIST_BYTES_MIN:
            async with self._resolver.turn:
                taken = await take_tokens(b'{"prompt":%b}' % content, "prompt", JSON)
            if taken is not None and not taken.left and taken.bad is None:
                return msgspec.structs.replace(request, token_ids=taken.tokens)
        return msgspec.structs.replace(request, token_ids=tokens_of(content))

    # The pick

    async def _pods_in(self, subset: tuple[str, ...], model: str) -> frozenset[str]:
        """The model's pods whose endpoints are in the subset. Raises Problem 503 if there are none."""
        apis = self._apis.of_model(model)
        endpoints = await asyncio.gather(*(self._destinations.of(api) for api in apis.values()))
        allowed = frozenset(subset)
        found = frozenset(pod for pod, endpoint in zip(apis, endpoints, strict=True) if endpoint is not None and _is_in(endpoint, allowed))
        if not found:
            raise Problem(503, f"none of the {len(allowed)} endpoints to choose from is a pod of {model!r}", retry_after_s=RETRY_AFTER_S)
        return found

    async def _reachable(self, query: Query, request: PickRequest, by_load: ByLoad | None, count: int) -> Picked:
        """The pick of a pod whose address is known, with at most so many fallbacks. Raises Problem."""
        unreached: list[str] = []
        for _ in range(UNREACHED_MAX):
            pick = self._pick(query, msgspec.structs.replace(request, exclude=unreached))
            apis = self._apis.of(query.model, pick.order[: 1 + count])
            (pod, api), *others = apis.items()
            destination = await self._destinations.of(api)
            if destination is not None:
                self._route_metrics.picked(pick)
                fallbacks = [found for _, other in others if (found := self._destinations.known(other)) is not None]
                prefill = await self._prefill(query, request, pick) if request.prefill else None
                matched_tokens = pick.reasons[pod].matched_tokens
                return Picked(pick.id, pod, destination, fallbacks, pick.picked_for, by_load, matched_tokens, pick.block_size, prefill)
            self._router.done(pick.id)
            unreached.append(pod)
        raise Problem(503, f"no pod can be picked: the names of {len(unreached)} have no address", retry_after_s=RETRY_AFTER_S)

    async def _prefill(self, query: Query, request: PickRequest, pick: Pick) -> str | None:
        """Where the pod is that computes the prompt of a pick; None where the picked pod does so itself."""
        if pick.reasons[pick.order[0]].uncached_tokens <= self._settings.pick_prefill_tokens:
            self._metrics.prefills["short"].inc()
            return None
        only = request.prefill if request.only is None else frozenset(request.prefill) & frozenset(request.only)
        try:
            computes = self._router.pick_for_prefill(query, msgspec.structs.replace(request, only=only, prefill=()), time.monotonic(), pick)
        except (UnknownModelError, NoPodError):
            self._metrics.prefills["no_pod"].inc()
            return None
        (api,) = self._apis.of(query.model, computes.order[:1]).values()
        destination = await self._destinations.of(api)
        if destination is None:
            self._router.prefilled(pick.id)
        self._metrics.prefills["no_pod" if destination is None else "remote"].inc()
        return destination

    def _pick(self, query: Query, request: PickRequest) -> Pick:
        try:
            return self._router.pick(query, request, time.monotonic())
        except UnknownModelError:
            raise unknown_model(query.model) from None
        except NoPodError as error:
            raise Problem(503, str(error), retry_after_s=RETRY_AFTER_S) from None


def _is_in(endpoint: str, allowed: frozenset[str]) -> bool:
    """Whether `address:port` is allowed, or its address is."""
    address = endpoint.rpartition(":")[0]
    return endpoint in allowed or address in allowed or address.strip("[]") in allowed
