"""The roles that answer scores, each behind one ASGI app."""

from collections.abc import Sequence
from importlib import import_module

from msgspec import structs
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings, read_pairs
from indexer.errors import SettingError
from indexer.extras import import_extra
from indexer.http.access import Access
from indexer.http.app import make_app
from indexer.http.at_once import AtOnce
from indexer.http.loop_lag import LoopLag
from indexer.http.routes import Pods
from indexer.http.server import Part, Reconfigurable, Served
from indexer.metrics import HttpMetrics, IndexerMetrics, RedisMetrics
from indexer.ownership.embedded import Service
from indexer.ownership.replica import ReplicaService
from indexer.workers.worker import Worker
from scorer_api.api import page
from scorer_api.api.components import components
from scorer_api.api.handlers import Handlers, make_handlers
from scorer_api.api.picking import Picking, make_picking
from scorer_api.api.routes import DIRECT, make_router
from scorer_api.cells.app import make_front
from scorer_api.compat.mount import Streams, add_compat, direct_paths, open_paths
from scorer_api.following.follower import Follower
from scorer_api.following.shared_pods import SharedPods
from scorer_api.gateway.calls import Calls
from scorer_api.gateway.certificate import CertificateFiles
from scorer_api.gateway.metrics import GatewayMetrics
from scorer_api.index.view import View
from scorer_api.metrics import FollowerMetrics, TokenMetrics
from scorer_api.rpc.metrics import RpcMetrics
from scorer_api.rpc.service import ScorerService
from scorer_api.tokens.engine_tokenizer import EngineTokenizer
from scorer_api.tokens.resolver import Tokenizer, TokenResolver

SUMMARY = "Tells any LLM router which pod already holds the longest prefix of a prompt."


def make_serve(settings: Settings, worker: Worker | None = None) -> Served:
    """The `serve` role: indexer and scorer in one process; with Redis they share what they know with others. `worker`: as for `make_api`.

    Raises SettingError.
    """
    if settings.cells:
        raise SettingError("--cells", settings.cells[0], "is for kv-indexer api only")
    if settings.redis is not None:
        return _make_shared(settings, with_indexer=True, worker=worker)
    registry = CollectorRegistry()
    view = View(settings)
    streams = Streams(view) if settings.compat == "dynamo" else None
    observe = None if streams is None else streams.observe
    service = Service(settings, view, IndexerMetrics(registry), view.loads.note, view.note_dropped, view.note_ready, observe)
    view.mapped_key = service.mapped_key
    if streams is not None:
        streams.table = service.table
    return _served(settings, view, service, registry, [service], service, streams)


def make_api(settings: Settings, worker: Worker | None = None) -> Served:
    """The `api` role: a scorer that follows what indexers write to Redis, or answers for cells. `worker`: this one, where scorers share the port."""
    return make_front(settings) if settings.cells else _make_shared(settings, with_indexer=False, worker=worker)


def _make_shared(settings: Settings, *, with_indexer: bool, worker: Worker | None = None) -> Served:
    registry = CollectorRegistry()
    view = View(settings, "redis")
    metrics = FollowerMetrics(registry, view)
    if with_indexer:
        service = ReplicaService(settings, IndexerMetrics(registry))
        follower = Follower(settings, view, metrics)
        pods = SharedPods(settings, follower, service, worker)
        served = _served(settings, view, pods, registry, [service, follower], service, worker=worker)
        if worker is None:
            return served
    else:
        follower = Follower(settings, view, metrics, RedisMetrics(registry).up)
        pods = SharedPods(settings, follower, worker=worker)
        served = _served(settings, view, pods, registry, [follower], worker=worker)
    takes_over = worker is not None and worker.is_restarted
    return structs.replace(served, is_ready=pods.is_caught_up if takes_over else pods.is_loaded)


def _served(
    settings: Settings,
    view: View,
    pods: Pods,
    registry: CollectorRegistry,
    parts: Sequence[Part],
    service: Reconfigurable | None = None,
    streams: Streams | None = None,
    worker: Worker | None = None,
) -> Served:
    """`streams`: what is known of streams that run in this process alone, for --compat."""
    access = Access(settings, HttpMetrics(registry))
    token_metrics = TokenMetrics(registry)
    token_resolver = TokenResolver(settings, EngineTokenizer(settings, view, pods, token_metrics), _local_tokenizers(settings), token_metrics)
    picking = make_picking(settings, view, pods, token_resolver, registry, worker)
    handlers = make_handlers(settings, view, pods, picking, registry)
    router = make_router(settings, view, pods, picking, handlers, registry, access, worker)
    add_compat(router, settings, view, pods, picking.resolver, access, streams)
    described = components(allows_ipc=settings.engine_networks.allows_ipc)
    app = make_app(SUMMARY, router, described, settings, access, page.PATHS | open_paths(settings), DIRECT | direct_paths(settings))
    at_once = None  # the app logs each request
    if not settings.access_log:
        answers = {"/v1/score": handlers.scores.answer_at_once, "/v1/route": handlers.picks.answer_at_once}
        at_once = AtOnce(answers, access, settings.body_bytes_max)
    served = Served(app, [LoopLag(registry), *parts, token_resolver], [access], service, at_once=at_once)
    return served if settings.gateway_listen is None else _with_gateway(served, settings, pods, picking, handlers, access, registry)


def _with_gateway(
    served: Served, settings: Settings, pods: Pods, picking: Picking, handlers: Handlers, access: Access, registry: CollectorRegistry
) -> Served:
    """The same with an endpoint picker and the scorer over gRPC, which start last and stop first. Raises SettingError."""
    module = import_extra("scorer_api.gateway.server", "h2", "gateway", "--gateway-listen")
    files = CertificateFiles.of(settings)
    tls = None if files is None else files.context
    if settings.gateway_self_signed:
        tls = import_extra("scorer_api.gateway.self_signed", "cryptography", "gateway", "--gateway-self-signed").make_context()
    calls = Calls(settings, picking.picker, picking.pick_metrics, GatewayMetrics(registry), access.room)
    scorer = ScorerService(settings, handlers, pods, access, RpcMetrics(registry))
    server = module.GatewayServer(settings, calls, lambda: pods.readiness().is_ready, tls, scorer)
    reloadables = served.reloadables if files is None else [*served.reloadables, files]
    return structs.replace(served, parts=[*served.parts, server], reloadables=reloadables, on_stop=[server.drain])


def _local_tokenizers(settings: Settings) -> dict[str, Tokenizer]:
    """Model → tokenizer. Raises SettingError."""
    folders = read_pairs(settings.tokenizer, "--tokenizer")
    if not folders:
        return {}
    # Imported here: its libraries take a tenth of a second, and most services need none of them.
    module = import_module("scorer_api.tokens.local_tokenizer")
    tokenizers: dict[str, Tokenizer] = module.read_tokenizers(folders, settings.limits.tokenize)
    return tokenizers
