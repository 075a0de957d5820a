"""The routes of all roles: pods, health, readiness and metrics."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.convertors import Convertor, register_url_convertor

from indexer.config.settings import Settings
from indexer.engines.api import EngineApi
from indexer.engines.resolver import check_names
from indexer.engines.spec import EngineSpec, aliases, http_base
from indexer.errors import NotFollowedError, SettingError, StoreError
from indexer.http import openapi
from indexer.http.access import Access
from indexer.http.exposition import exposition
from indexer.http.negotiation import JSON, media_type_of, read_body, respond, respond_in_pieces
from indexer.http.pods_page import PodsPage, encoded_pods
from indexer.http.problems import Problem
from indexer.http.schemas import HealthAnswer
from indexer.http.worker_metrics import WorkerMetrics
from indexer.streams.pool import PodStatus
from indexer.streams.readiness import Readiness
from indexer.workers.worker import Worker

ROOT_PATH = "/"
POD_BYTES_MAX = 65_536
# When a client may retry after a response that Redis is away.
RETRY_AFTER_S = 1


class Pods(Protocol):
    """The registered pods and whether the service is ready. With Redis, changes raise StoreError while it is unavailable."""

    def pod_names(self) -> list[str]: ...

    def pods(self, names: Iterable[str] | None = None) -> Iterator[PodStatus]:
        """Those of these names, or all. Each is looked at when it is asked for."""

    def specs(self, pod: str) -> tuple[EngineSpec, ...]:
        """Where a pod's events come from, as far as this process knows."""

    async def register(self, specs: tuple[EngineSpec, ...]) -> bool: ...

    async def forget(self, pod: str) -> bool: ...

    def forget_adapter(self, pod: str, name: str) -> bool: ...

    def readiness(self) -> Readiness: ...

    def api(self, pod: str, model: str) -> EngineApi: ...

    def apis(self, model: str) -> dict[str, EngineApi]: ...

    def models_with(self, adapter: str) -> set[str]: ...

    def adapters(self, model: str) -> set[str]: ...

    def models_named(self, alias: str) -> set[str]: ...


class _AnyText(Convertor[str]):
    """The remaining path, whatever it contains: Starlette's own `path` ends at a line break."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any", _AnyText())


def add_routes(router: APIRouter, settings: Settings, pods: Pods, registry: CollectorRegistry, access: Access, worker: Worker | None = None) -> None:
    """Add the routes to the router of a role. `registry`: the metrics of that role. `access`: who may change pods. `worker`: this one, where
    processes share the port.
    """
    _add_pods(router, settings, pods, access)
    add_health(router, pods.readiness)
    add_metrics(router, registry, worker)


def add_root(router: APIRouter, page: str) -> None:
    """Send browsers that open `/` to a page of the role. `page`: relative to `/`, as a proxy may have put a prefix in front."""

    @router.api_route(ROOT_PATH, methods=["GET", "HEAD"], include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse(page)


def _add_pods(router: APIRouter, settings: Settings, pods: Pods, access: Access) -> None:
    networks = settings.engine_networks

    @router.get("/v1/pods", **openapi.PODS)
    async def get_pods(request: Request) -> Response:
        """Every registered pod, with the state of its streams; with `limit` or `after` a page of them, by name."""
        page = PodsPage.of(pods.pod_names(), request.query_params)
        return await respond_in_pieces(encoded_pods(pods.pods(page.names), page.next), JSON)

    @router.put("/v1/pods/{pod:any}", **openapi.PUT_POD)
    async def put_pod(pod: str, request: Request) -> Response:
        """Register a pod, or replace it. What stays the same keeps its blocks."""
        access.check_change(request)
        media_type_of(request, JSON)
        spec = _pod_spec(pod, await read_body(request, POD_BYTES_MAX, settings.limits.http.body_timeout_s))
        try:
            await check_names(spec, networks)
            is_new = await pods.register((spec,))
        except SettingError as error:
            raise Problem(422, f"{error.key}: {error.allowed}") from None
        except StoreError as error:
            raise _unavailable(error) from None
        status = next(pods.pods([pod]), PodStatus(pod, spec.model, [], http_base((spec,)), aliases((spec,))))
        return respond(status, status=201 if is_new else 200)

    @router.delete("/v1/pods/{pod:any}", status_code=204, **openapi.DELETE_POD)
    async def delete_pod(pod: str, request: Request) -> Response:
        """Forget a pod and its blocks at once; with `lora`, only its blocks of that adapter. A pod that a flag names comes back at the next start."""
        access.check_change(request)
        lora = request.query_params.get("lora")
        try:
            was_known = await pods.forget(pod) if lora is None else pods.forget_adapter(pod, lora)
        except StoreError as error:
            raise _unavailable(error) from None
        except NotFollowedError as error:
            raise Problem(409, f"pod: {error}; ask the indexer that owns them, see /v1/pods") from None
        if not was_known:
            raise Problem(404, f"pod: {pod!r} is not registered, see /v1/pods")
        return Response(status_code=204)


def add_health(router: APIRouter, readiness_of: Callable[[], Readiness]) -> None:
    """Whether the process lives, and whether its answers can be relied on."""

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz", **openapi.HEALTH)
    async def healthz() -> Response:
        """The process lives."""
        return respond(HealthAnswer("alive"))

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", **openapi.READY)
    async def readyz() -> Response:
        """Whether answers can be relied on, and what is not as it should be."""
        readiness = readiness_of()
        return respond(readiness.shortened(), status=200 if readiness.is_ready else 503)


def add_metrics(router: APIRouter, registry: CollectorRegistry, worker: Worker | None = None) -> None:
    """The metrics of the registry; of all workers, where processes share the port."""
    of_all = None if worker is None else WorkerMetrics(registry, worker)

    @router.get("/metrics", **openapi.METRICS)
    async def prometheus(request: Request) -> Response:
        """Metrics in the text format of Prometheus."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        metrics = registry.collect() if of_all is None else await of_all.gather()
        return Response(await exposition(metrics, encode), headers={"Content-Type": content_type})


def _unavailable(error: StoreError) -> Problem:
    return Problem(503, f"{error}: pods cannot be changed now, try again", retry_after_s=RETRY_AFTER_S)


def _pod_spec(pod: str, body: bytes) -> EngineSpec:
    """Raises Problem."""
    try:
        given: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.ValidationError:
        raise Problem(422, "the body should be a JSON object with the keys of an engine spec") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise Problem(400, "the body is nested too deeply") from None
    if given.get("pod") not in (None, pod):
        raise Problem(422, f"pod: {given['pod']!r} should be the name in the path, {pod!r}, or left out")
    try:
        return EngineSpec.from_mapping({**given, "pod": pod}, "spec")
    except SettingError as error:
        raise Problem(422, error.allowed) from None
