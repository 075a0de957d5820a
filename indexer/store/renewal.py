"""Renewing what is owned: leases, times to live, and until when content counts; and seeing whether Redis still has it as it was written."""

import time
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from indexer.core.names import StreamKey
from indexer.store.client.connection import node_of
from indexer.store.flusher import Flusher, Ownership
from indexer.store.pending import PendingWrites
from indexer.store.session import StoreSession

# Number of streams that one call renews.
STREAMS_MAX = 50


class OwnedStatus(Struct, frozen=True):
    """What an owner says of a stream. `status`: as JSON. `is_connected`: whether its engine is, so that its time to live is renewed."""

    status: bytes
    is_connected: bool


ENDING = OwnedStatus(b"null", is_connected=False)
"""A stream that runs no longer, and is about to be given back."""


class Renewed(Struct, frozen=True):
    """What became of one owned stream. `wanted_by`: another indexer that asks for it."""

    ownership: Ownership
    wanted_by: str | None = None


class _Written(Struct, frozen=True):
    """What Redis should have of a stream, as it was known when it was asked."""

    generation: int | None
    number: int
    is_writing_in_full: bool


class Renewal:
    """Renews the streams that a flusher writes."""

    def __init__(self, session: StoreSession, flusher: Flusher) -> None:
        self._session = session
        self._flusher = flusher

    async def renew(self, statuses: Mapping[StreamKey, OwnedStatus], slot: int | None = None) -> dict[StreamKey, Renewed]:
        """Renew what is ours, in one slot or in all, and see whether it still is. Raises StoreError."""
        renewed: dict[StreamKey, Renewed] = {}
        by_shard: dict[str, list[PendingWrites]] = {}
        for pending in self._flusher.streams.values():
            if slot is None or self._session.slot_of(pending.key) == slot:
                by_shard.setdefault(pending.keys.incarnation, []).append(pending)
        for key, streams in by_shard.items():
            for start in range(0, len(streams), STREAMS_MAX):
                renewed |= await self._renew(streams[start : start + STREAMS_MAX], statuses)
            self._session.note_answer(key)
        return renewed

    async def _renew(self, streams: list[PendingWrites], statuses: Mapping[StreamKey, OwnedStatus]) -> dict[StreamKey, Renewed]:
        """`streams`: of one shard."""
        key = streams[0].keys.streams
        await self._session.learn_time(key)
        node = node_of(self._session.client, key)
        renewed, was_set_back = await self._renew_once(streams, statuses)
        if was_set_back or node_of(self._session.client, key) != node:
            # Another clock answered than the one by which it was said until when the content counts.
            await self._session.learn_time(key)
            renewed, _ = await self._renew_once(streams, statuses)
        return renewed

    async def _renew_once(self, streams: list[PendingWrites], statuses: Mapping[StreamKey, OwnedStatus]) -> tuple[dict[StreamKey, Renewed], bool]:
        """Returns what became of each, and whether the clock was set back since it was looked at last."""
        session, keys = self._session, streams[0].keys
        names = [keys.streams, keys.log, keys.incarnation]
        words: list[Any] = [session.member, session.lease_ms, *streams[0].ttl_ms]
        written = [_Written(pending.generation, pending.number, pending.is_writing_in_full) for pending in streams]
        for pending in streams:
            names += [keys.lease(pending.key), keys.state(pending.key), *keys.parts(pending.key, pending.generation or 0)]
            until_ms = session.trusted_until_ms(keys.streams, pending.unwritten_since_s)
            owned = statuses.get(pending.key, ENDING)
            words += [pending.name, pending.fence, owned.status, int(owned.is_connected), until_ms]
            words += ["" if pending.generation is None else pending.generation, pending.number]
        epoch, asked_s = session.note_server_epoch(), time.monotonic()
        now_ms, _, *answers = await session.call("renew", names, *words)
        was_set_back = session.note_time(keys.streams, now_ms, epoch, asked_s)
        renewed = {}
        for pending, before, answer in zip(streams, written, answers, strict=True):
            if self._flusher.is_current(pending):
                ownership = await self._check(pending, before, answer)
                wanted_by = str(answer[4], "utf-8") if answer[0] == 1 and answer[4] else None
                renewed[pending.key] = Renewed(ownership, wanted_by)
        return renewed, was_set_back

    async def _check(self, pending: PendingWrites, written: _Written, answer: Any) -> Ownership:
        """Have written again what Redis does not have as it should. Raises StoreError."""
        if answer[0] == 0:
            return Ownership.LOST
        is_in_full = written.is_writing_in_full or pending.is_writing_in_full or pending.needs_full_write
        if is_in_full or pending.is_expired or written.generation is None or pending.generation != written.generation:
            return Ownership.OURS  # nothing to compare with yet
        if answer[0] == -1:
            return await self._flusher.check_missing(pending)
        if int(answer[1]) != written.generation or int(answer[2]) < written.number or not answer[3]:
            self._flusher.rewrite(pending, "went_back")
        return Ownership.OURS
