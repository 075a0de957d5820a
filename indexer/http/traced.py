"""A span for each request to the API, where traces are wanted."""

from typing import Any

from indexer.tracing.current import Tracer

# Parts of longer paths come from clients, and would each be a name of its own.
ROUTES = (
    *("/v1/score/batch", "/v1/score", "/v1/explain", "/v1/route/done", "/v1/route", "/v1/pick", "/v1/pods", "/v1/models", "/v1/hot"),
    "/v1",
)
TAKEN_OVER = (b"traceparent", b"tracestate")


class Traced:
    """ASGI middleware around everything else. Health checks, metrics and the page have no spans."""

    def __init__(self, app: Any, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        route = route_of(scope["path"]) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in TAKEN_OVER}
        attributes = {"http.request.method": scope["method"], "http.route": route, "url.path": scope["path"]}
        with self._tracer.request(f"{scope['method']} {route}", headers, attributes) as span:

            async def noting(message: Any) -> None:
                if message["type"] == "http.response.start":
                    span.note({"http.response.status_code": message["status"]})
                    if message["status"] >= 500:
                        span.fail(str(message["status"]))
                await send(message)

            await self._app(scope, receive, noting)


def route_of(path: str) -> str | None:
    """The route of a path, without what clients put into it; None for what is not the API's."""
    return next((route for route in ROUTES if path == route or path.startswith(route + "/")), None)
