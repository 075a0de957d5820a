"""A role's router behind an ASGI app."""

from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline

from indexer import __version__
from indexer.http import openapi, problems
from indexer.http.access import Access, Gate
from indexer.settings import Settings


def make_app(summary: str, router: APIRouter, components: dict[str, Any], settings: Settings, access: Access) -> FastAPI:
    """`summary`: what the role does. `components`: the JSON schemas of the types that its document names, see `schemas`."""
    app = FastAPIOffline(title="KV Event Indexer", summary=summary, version=__version__, redoc_url=None)
    app.include_router(router)
    problems.install(app, router.routes)
    openapi.install(app, components, access)
    if access.needs_token:
        app.add_middleware(Gate, access=access, body_bytes_max=settings.body_bytes_max)
    return app
