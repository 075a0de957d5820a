"""The routes that routers call for each request, called past the web framework, which takes as long to find and call them as they take to answer.

They are the same functions of the request, with the same checks in front of them; the OpenAPI document is made of the framework's routes.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any

from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.routing import BaseRoute

from indexer.http.problems import Problem, response_to_disconnect, response_to_problem

Endpoint = Callable[..., Awaitable[Response]]
REST = "/{path:any}"


class Direct:
    """ASGI middleware. `paths`: of the routes that are called directly: with a request alone, or with the rest of the path too where they end with
    REST."""

    def __init__(self, app: Any, routes: Iterable[BaseRoute], paths: Collection[str]) -> None:
        self._app = app
        self._endpoints: dict[tuple[str, str], Endpoint] = {}
        self._below: dict[str, dict[str, Endpoint]] = {}
        for route in routes:
            if not isinstance(route, APIRoute) or route.path not in paths:
                continue
            for method in route.methods or ():
                if route.path.endswith(REST):
                    self._below.setdefault(route.path.removesuffix(REST) + "/", {})[method] = route.endpoint
                else:
                    self._endpoints[method, route.path] = route.endpoint

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        found = self._find(scope["method"], scope["path"]) if scope["type"] == "http" and not scope.get("root_path") else None
        if found is None:
            await self._app(scope, receive, send)
            return
        endpoint, rest = found
        request = Request(scope, receive)
        try:
            response = await endpoint(request, *rest)
        except Problem as problem:
            response = response_to_problem(problem)
        except ClientDisconnect:
            response = response_to_disconnect()
        await response(scope, receive, send)

    def _find(self, method: str, path: str) -> tuple[Endpoint, tuple[str, ...]] | None:
        if (endpoint := self._endpoints.get((method, path))) is not None:
            return endpoint, ()
        for start, endpoints in self._below.items():
            if path.startswith(start) and (endpoint := endpoints.get(method)) is not None:
                return endpoint, (path.removeprefix(start),)
        return None
