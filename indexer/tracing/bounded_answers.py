"""Spans sent over HTTP, to a receiver whose answer may be without end: the exporter's library would read all of it."""

import io
from typing import Any

from requests import Response, Session
from requests.adapters import HTTPAdapter
from urllib3 import HTTPResponse

ANSWER_BYTES_MAX = 65_536


class _BoundedAdapter(HTTPAdapter):
    def send(self, *words: Any, **more: Any) -> Response:
        response = super().send(*words, **more)
        raw = response.raw
        body = raw.read(ANSWER_BYTES_MAX, decode_content=True)
        if len(body) == ANSWER_BYTES_MAX:
            raw.close()
        response.raw = HTTPResponse(io.BytesIO(body), status=raw.status, preload_content=False)
        return response


def bounded_session() -> Session:
    """A session that reads no more than ANSWER_BYTES_MAX of an answer; the rest ends its connection."""
    session = Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _BoundedAdapter())
    return session
