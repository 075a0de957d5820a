"""An answer over HTTP, or none."""

from typing import TypeVar

import msgspec
from msgspec import Struct

T = TypeVar("T")


class Reply(Struct, frozen=True):
    """What came of a request. Without `status` nothing did, and `error` says why. `skew_s`: the other clock less ours, by its Date, to a second."""

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
        """In a few words."""
        return self.error if self.status is None else f"{self.status} {self.body[:120].decode(errors='replace')}".strip()

    def read(self, kind: type[T]) -> T | None:
        """Its JSON; None where it is not of this shape."""
        try:
            return msgspec.json.decode(self.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
