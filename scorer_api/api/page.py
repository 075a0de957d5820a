"""The page at /ui. Its files contain no data: its script asks the service, like any other client."""

from importlib.resources import files

from fastapi import APIRouter, Response

from indexer.http.routes import ROOT_PATH, add_root

FOLDER = files("scorer_api.api") / "ui"
PAGE = "index.html"
MEDIA_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
ASSETS = ("style.css", "icon.svg", "main.js", "service.js", "dom.js", "pods.js", "chart.js", "answer.js", "history.js", "hot.js")
FILES = {"/ui": PAGE} | {f"/ui/{name}": name for name in ASSETS}
PATHS = frozenset({*FILES, ROOT_PATH})
"""These need no token: a browser sends none when it opens a page."""

# The page can load, run and ask nothing but this service, and cannot be framed. Trusted Types keep text from becoming markup or script.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # After an upgrade, files of both versions must not be mixed.
    "Cache-Control": "no-store",
}


def add_page(router: APIRouter) -> None:
    """Add the page to the router of a role that answers scores."""
    add_root(router, "ui")
    for path, name in FILES.items():
        _add_file(router, path, FOLDER.joinpath(name).read_bytes(), MEDIA_TYPES[name.rpartition(".")[2]])


def _add_file(router: APIRouter, path: str, content: bytes, media_type: str) -> None:
    @router.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
    async def file() -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)
