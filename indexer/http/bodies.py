"""All request bodies of a process together are bounded: those that are arriving, and those of requests that are not answered yet."""

from typing import Any

from prometheus_client import Counter

from indexer.http.body_room import BodyRoom
from indexer.http.problems import Problem

RETRY_AFTER_S = 1


class BodyBound:
    """ASGI middleware. A body counts from its first byte until its request is answered, or its client is gone.

    `refused`: counts requests for whose bodies there was no room; they get 429.
    """

    def __init__(self, app: Any, room: BodyRoom, refused: Counter) -> None:
        self._app = app
        self._room = room
        self._refused = refused

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held = 0

        async def receive_counted() -> Any:
            nonlocal held
            message = await receive()
            if size := len(message.get("body", b"")):
                if size > self._room.bytes_left:
                    self._refused.inc()
                    detail = f"the bodies of all requests together have more than {self._room.bytes_max} bytes (bodies_bytes_max); try again"
                    raise Problem(429, detail, closes=True, retry_after_s=RETRY_AFTER_S)
                held += size
                self._room.bytes_left -= size
            return message

        try:
            await self._app(scope, receive_counted, send)
        finally:
            self._room.bytes_left += held
