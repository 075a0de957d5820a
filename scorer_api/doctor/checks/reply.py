"""The reply to an HTTP request, or why there is none."""

from typing import TypeVar

import msgspec
from msgspec import Struct

T = TypeVar("T")


class Reply(Struct, frozen=True):
    """`status`: None if there is no answer; `error` says why. `skew_s`: the other clock minus ours, by the Date header, to a second."""

    status: int | None = None
    body: bytes = b""
    skew_s: float | None = None
    error: str = ""
    is_tls_error: bool = False

    @property
    def is_ok(self) -> bool:
        return self.status == 200

    @property
    def said(self) -> str:
        """The reply in a few words."""
        return self.error if self.status is None else f"{self.status} {self.body[:120].decode(errors='replace')}".strip()

    def read(self, kind: type[T]) -> T | None:
        """The body decoded from JSON, None if it has another shape."""
        try:
            return msgspec.json.decode(self.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
