"""The answer to `GET /v1/pods`: every pod, or a page of them, encoded in steps, so that other requests have their turn between two of them."""

from bisect import bisect_right
from collections.abc import AsyncGenerator, Iterator, Mapping

from msgspec import Struct

from indexer.http.negotiation import JSON, encode
from indexer.http.problems import Problem
from indexer.http.turns import Turns
from indexer.streams.pool import PodStatus

PAGE_PODS_MAX = 10_000
# The answer is sent in pieces of about so many bytes. A smaller one is sent as a whole, with its length.
PIECE_BYTES = 65_536


class PodsPage(Struct, frozen=True):
    """`names`: the pods of a page. `next`: what `after` has to be for the next page, None where this is the last one."""

    names: list[str]
    next: str | None = None

    @classmethod
    def of(cls, names: list[str], query: Mapping[str, str]) -> "PodsPage":
        """All of them as they are, or, where the query has `limit` or `after`, a page of them by name. Raises Problem 422."""
        if "limit" not in query and "after" not in query:
            return cls(names)
        limit = read_limit(query.get("limit"), PAGE_PODS_MAX, PAGE_PODS_MAX)
        ordered = sorted(names)
        start = bisect_right(ordered, query["after"]) if "after" in query else 0
        page = ordered[start : start + limit]
        return cls(page, page[-1] if start + limit < len(ordered) else None)


def read_limit(text: str | None, most: int, default: int) -> int:
    """The parameter `limit` of a query. Raises Problem 422."""
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most)) and 1 <= int(text) <= most):
        raise Problem(422, f"limit: should be a whole number from 1 to {most}")
    return int(text)


async def encoded_pods(pods: Iterator[PodStatus], next_after: str | None) -> AsyncGenerator[bytes, None]:
    """A `PodsAnswer` in JSON, in pieces."""
    piece = bytearray(b'{"pods":[')
    separator = b""
    turns = Turns()
    for pod in pods:
        piece += separator + encode(pod, JSON)
        separator = b","
        if len(piece) >= PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
        await turns.give()
    piece += b"]" if next_after is None else b'],"next":' + encode(next_after, JSON)
    yield bytes(piece + b"}")
