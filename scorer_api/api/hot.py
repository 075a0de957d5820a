"""Answers `GET /v1/hot`."""

import time
from collections.abc import AsyncGenerator, Mapping

from indexer.http.negotiation import JSON, encode
from indexer.http.pods_page import read_limit
from indexer.http.problems import Problem
from indexer.http.turns import Turns
from scorer_api.api.openapi import HOT_LIMIT, HOT_LIMIT_MAX
from scorer_api.api.schemas import HotPrefixAnswer
from scorer_api.index.hot_prefixes import HALF_LIFE_S, HotPrefix, HotPrefixes
from scorer_api.index.view import View

OFF = "this service does not count which prefixes are asked for: start it with --hot-prefixes"


async def encoded_hot(view: View, query: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
    """A `HotAnswer` in JSON, in pieces: who holds a prefix takes a walk along its keys. Raises Problem 422, and 501 where nothing is counted."""
    limit = read_limit(query.get("limit"), HOT_LIMIT_MAX, HOT_LIMIT)
    hot = view.hot
    if hot is None:
        raise Problem(501, OFF)
    now_s = time.monotonic()
    piece = bytearray(b'{"half_life_s":' + encode(HALF_LIFE_S, JSON) + b',"prefixes":[')
    turns = Turns()
    for number, prefix in enumerate(hot.hottest(limit, now_s, query.get("model"))):
        piece += (b"," if number else b"") + encode(_answer(view, hot, prefix, now_s), JSON)
        await turns.give()
    yield bytes(piece + b"]}")


def _answer(view: View, hot: HotPrefixes, prefix: HotPrefix, now_s: float) -> HotPrefixAnswer:
    block_size, _ = prefix.cut
    return HotPrefixAnswer(
        model=prefix.model,
        prefix=f"{prefix.keys[-1]:016x}",
        parent=None if prefix.parent is None else f"{prefix.parent:016x}",
        blocks=len(prefix.keys),
        tokens=len(prefix.keys) * block_size,
        requests=round(prefix.requests, 3),
        share=round(min(1.0, prefix.requests / hot.requests(prefix.model, prefix.cut, now_s)), 4),
        asked_age_s=round(max(0.0, now_s - prefix.asked_s), 3),
        held=view.held_tokens(prefix.model, prefix.cut, prefix.keys),
    )
