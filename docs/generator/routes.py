"""The routes of the HTTP API, from the application itself."""

from typing import Any

from fastapi.openapi.utils import get_openapi

from docs.generator.markdown import cell, code, table
from indexer.config.settings import Settings
from scorer_api.app import make_serve


def routes() -> list[tuple[str, str, str]]:
    """(Method, path, meaning of success) of every route in the OpenAPI document."""
    paths = get_openapi(title="", version="", routes=make_serve(Settings()).app.routes)["paths"]
    return [(method.upper(), path, _success(route["responses"])) for path, methods in paths.items() for method, route in methods.items()]


def _success(responses: dict[str, Any]) -> str:
    """What the answers of the 200s say; the same text once."""
    return " ".join(dict.fromkeys(response["description"] for status, response in responses.items() if status.startswith("2")))


def routes_table() -> str:
    """Every route."""
    return table(["Method", "Path", "Answer"], ([method, code(path), cell(answer)] for method, path, answer in routes()))
