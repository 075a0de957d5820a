"""The role that answers for cells, as an ASGI app."""

from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.engines.spec import is_http_base
from indexer.errors import SettingError
from indexer.http.access import Access
from indexer.http.app import make_app
from indexer.http.loop_lag import LoopLag
from indexer.http.routes import add_root
from indexer.http.server import Served
from indexer.metrics import HttpMetrics
from scorer_api.cells import openapi
from scorer_api.cells.fan_out import FanOut
from scorer_api.cells.metrics import CellMetrics
from scorer_api.cells.routes import DIRECT, make_router

SUMMARY = "Asks scorers that each know some of the pods, and answers for all of them."
CELLS_MAX = 64


def make_front(settings: Settings) -> Served:
    """Raises SettingError for URLs that cannot be used, and for settings that are for a scorer of its own."""
    urls = _urls(settings)
    for flag, value, is_given in (
        ("--redis", settings.redis, settings.redis is not None),
        ("--workers", settings.workers, settings.workers > 1),
        ("--gateway-listen", settings.gateway_listen, settings.gateway_listen is not None),
        ("--compat", settings.compat, settings.compat != "none"),
    ):
        if is_given:
            raise SettingError(flag, value, "cannot be given with --cells: it belongs to the cells")
    registry = CollectorRegistry()
    access = Access(settings, HttpMetrics(registry))
    metrics = CellMetrics(registry, urls)
    cells = FanOut(urls, metrics, settings.limits.routing.cell_timeout_s)
    router = make_router(settings, cells, registry, metrics)
    add_root(router, "docs")
    app = make_app(SUMMARY, router, openapi.schemas(), settings, access, direct=DIRECT)
    return Served(app, [LoopLag(registry), cells], [access], is_ready=lambda: cells.readiness().is_ready)


def _urls(settings: Settings) -> list[str]:
    """Each once, without a slash at the end. Raises SettingError."""
    urls = []
    for url in settings.cells:
        if not is_http_base(url):
            raise SettingError("--cells", url, "should be http://host:port of a scorer")
        urls.append(url.rstrip("/"))
    if len(set(urls)) < len(urls):
        raise SettingError("--cells", " ".join(urls), "names a cell twice")
    if len(urls) > CELLS_MAX:
        raise SettingError("--cells", len(urls), f"should be {CELLS_MAX} cells at most")
    return urls
