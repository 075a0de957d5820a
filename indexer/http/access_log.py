"""The access log: a line for each request, with `--access-log`."""

import logging
import time
from typing import Any

log = logging.getLogger(__name__)

# A path may be as long as the head of a request.
PATH_LENGTH_MAX = 1_024


class AccessLog:
    """ASGI middleware that logs each request once its answer is sent.

    Fields: `method`, `path` as the client wrote it, without the query; `status`, left out where the client hung up; `seconds` from the request's head
    to the answer's end; `client`, an address.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        status: int | None = None

        async def note(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        except Exception:
            status = 500
            raise
        finally:
            log.info(
                "request",
                extra={
                    "method": scope["method"],
                    "path": _path(scope),
                    "status": status,
                    "seconds": round(time.perf_counter() - started_s, 6),
                    "client": scope["client"][0] if scope.get("client") else None,
                },
            )


def _path(scope: Any) -> str:
    """In ASCII: a terminal would take other characters for its own."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    return path.partition(b"?")[0][:PATH_LENGTH_MAX].decode("ascii", "backslashreplace")
