"""The ASGI app of a role, made of its router."""

from collections.abc import Set
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline

from indexer import __version__
from indexer.config.settings import Settings
from indexer.http import openapi, problems
from indexer.http.access import OPEN_PATHS, Access, Gate
from indexer.http.access_log import AccessLog
from indexer.http.bodies import BodyBound
from indexer.http.direct import Direct

# Since 0.165 FastAPI has traces, metrics and logs of its own: each request would pay for them beside those of `indexer.tracing`.
NO_TELEMETRY = {"tracing": False, "metrics": False, "logs": False, "operation_spans": False, "auto_configure": False}


def make_app(
    summary: str,
    router: APIRouter,
    components: dict[str, Any],
    settings: Settings,
    access: Access,
    pages: Set[str] = frozenset(),
    direct: Set[str] = frozenset(),
) -> FastAPI:
    """`summary`: what the role does. `components`: the JSON schemas of the types that its OpenAPI document names, see `schemas`. `pages`: paths
    without data, which need no token either. `direct`: paths of routes that are called past the framework, see `Direct`.
    """
    app = FastAPIOffline(title="KV Event Indexer", summary=summary, version=__version__, redoc_url=None, telemetry=NO_TELEMETRY)
    app.include_router(router)
    problems.install(app, router.routes)
    openapi.install(app, components, access)
    app.add_middleware(Direct, routes=router.routes, paths=direct)
    app.add_middleware(BodyBound, room=access.room, refused=access.metrics.no_room)
    if access.needs_token:
        app.add_middleware(Gate, access=access, open_paths=OPEN_PATHS | pages, body_bytes_max=settings.body_bytes_max)
    if settings.access_log:
        app.add_middleware(AccessLog)
    return app
