"""Leases: who may begin to own a stream. What keeps a former owner from writing is the fence, which a claim replaces."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

from msgspec import Struct
from redis.exceptions import RedisError

from indexer.core.names import StreamKey
from indexer.errors import StoreError
from indexer.store.client.connection import answer_of, why
from indexer.store.pending import random_number
from indexer.store.records import Head, decode_head
from indexer.store.session import StoreSession

log = logging.getLogger(__name__)

ClaimMode = Literal["free", "want", "force"]
"""free: only if the lease is free; want: the same, and else ask its owner for it; force: in any case."""


class Claim(Struct, frozen=True):
    """A stream that is ours now. `generation` is None where there is no state of it."""

    fence: int
    generation: int | None = None
    fence_before: int = 0
    number: int = 0
    head: Head | None = None
    lengths: tuple[int, ...] = ()


class Leases:
    """The leases of single streams. What is owned is renewed by `renewal`."""

    def __init__(self, session: StoreSession) -> None:
        self._session = session

    async def claim(self, stream: StreamKey, mode: ClaimMode) -> Claim | str:
        """Become the stream's owner. Returns its present owner where that is another indexer. Raises StoreError."""
        session, fence = self._session, random_number()
        keys = session.keyspace.of(stream)
        words = (session.member, session.lease_ms, fence, session.expiry_ms, f"{random_number():016x}", mode)
        await session.learn_time(keys.incarnation)
        answer = await session.call("claim", [keys.lease(stream), keys.state(stream), keys.incarnation], *words)
        if not answer[0]:
            return str(answer[1], "utf-8")
        if len(answer) == 2:
            return Claim(fence)
        generation, before, number, head, lengths = answer[2:]
        return Claim(fence, int(generation), int(before), int(number), decode_head(head), tuple(map(int, lengths.split(b","))))

    async def extend(self, stream: StreamKey) -> None:
        """Keep the lease of a stream that is being read and not owned yet. Cancel it."""
        lease = self._session.keyspace.of(stream).lease(stream)
        while True:
            with suppress(RedisError):  # the next read notices
                await answer_of(self._session.client.pexpire(lease, self._session.lease_ms))
            await asyncio.sleep(self._session.settings.lease_s / 3)

    async def release(self, stream: StreamKey) -> None:
        """Give the lease back. Never raises StoreError."""
        try:
            await self._session.call("release", [self._session.keyspace.of(stream).lease(stream)], self._session.member)
        except StoreError:
            log.info("lease not given back", extra={"pod": stream.pod, "rank": stream.rank})

    async def owners(self, streams: Sequence[StreamKey]) -> dict[StreamKey, str | None]:
        """Who has these streams; of a Cluster, those of the nodes that answer. Raises StoreError where none does."""
        pipeline = self._session.client.pipeline(transaction=False)
        leases = [self._session.keyspace.of(stream).lease(stream) for stream in streams]
        for lease in leases:
            pipeline.hget(lease, "owner")
        try:
            answers = await answer_of(pipeline.execute(raise_on_error=False))
        except RedisError as error:
            answers = [error] * len(leases)
        found = {}
        for stream, lease, answer in zip(streams, leases, answers, strict=True):
            if isinstance(answer, RedisError):
                self._session.note_error(answer, lease)
            else:
                found[stream] = None if answer is None else str(answer, "utf-8")
                self._session.note_answer(lease)
        if answers and not found:
            raise StoreError(why(answers[0])) from answers[0]
        return found
