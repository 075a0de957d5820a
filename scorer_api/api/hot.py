"""Answers `GET /v1/hot`."""

import time
from collections.abc import AsyncGenerator, Mapping

import msgspec

from indexer.core.event_pieces import result_of
from indexer.http.negotiation import JSON, encode
from indexer.http.pods_page import read_limit
from indexer.http.problems import Problem
from indexer.http.turns import Turns
from indexer.workers.worker import Worker
from scorer_api.api.openapi import HOT_LIMIT, HOT_LIMIT_MAX
from scorer_api.api.schemas import HotPrefixAnswer
from scorer_api.api.steps import one_by_one
from scorer_api.index.hot_prefixes import HALF_LIFE_S, HotNode, HotPrefix, HotPrefixes
from scorer_api.index.view import View

OFF = "this service does not count which prefixes are asked for: start it with --hot-prefixes"
TOPIC = "hot"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[HotNode]).decode


class HotHandler:
    """`worker`: this one, where processes share the port: then what all of them count is answered."""

    def __init__(self, view: View, hot_prefixes: int, worker: Worker | None = None) -> None:
        self._view = view
        self._hot_prefixes = hot_prefixes
        self._worker = worker
        if worker is not None:
            worker.handlers[TOPIC] = self._tell

    async def encoded(self, query: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """A `HotAnswer` in JSON, in pieces: who holds a prefix takes a walk along its keys. Raises Problem 422, and 501 where nothing is counted."""
        limit = read_limit(query.get("limit"), HOT_LIMIT_MAX, HOT_LIMIT)
        if self._view.hot is None:
            raise Problem(501, OFF)
        # What this process counts grows meanwhile, and is small enough for one step.
        hot = self._view.hot if self._worker is None else await self._of_all(self._worker)
        now_s = time.monotonic()
        steps = hot.hottest_in_steps(limit, now_s, query.get("model"))
        hottest = result_of(steps) if self._worker is None else await one_by_one(steps)
        piece = bytearray(b'{"half_life_s":' + encode(HALF_LIFE_S, JSON) + b',"prefixes":[')
        turns = Turns()
        for number, prefix in enumerate(hottest):
            piece += (b"," if number else b"") + encode(self._answer(hot, prefix, now_s), JSON)
            await turns.give()
        yield bytes(piece + b"]}")

    def _answer(self, hot: HotPrefixes, prefix: HotPrefix, now_s: float) -> HotPrefixAnswer:
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
            held=self._view.held_tokens(prefix.model, prefix.cut, prefix.keys),
        )

    async def _of_all(self, worker: Worker) -> HotPrefixes:
        """What all workers count, in one tree: where prompts part that came to different ones, it has a node too."""
        # Each node that is added may part another one, so this many are enough for all.
        merged = HotPrefixes(2 * self._hot_prefixes * worker.group.count)
        turns = Turns()
        told = await worker.ask(TOPIC)
        for number in (worker.number, *told):
            nodes = await self._own() if number == worker.number else _decode(told.pop(number))
            await turns.give()
            for _ in merged.add(nodes, time.monotonic()):
                await turns.give()
        return merged

    async def _tell(self, content: bytes) -> bytes:
        return _encode(await self._own())

    async def _own(self) -> list[HotNode]:
        """What this process counts. What is asked for meanwhile counts another time."""
        return [] if self._view.hot is None else list(self._view.hot.told(time.monotonic()))
