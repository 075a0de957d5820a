"""Reads the log of one shard of a model into the view: judges each entry, and applies it, empties or closes its stream, or has the stream loaded."""

import asyncio
import time

import msgspec

from indexer.errors import StoreError
from indexer.store.keyspace import stream_of
from indexer.store.reader import LogOffset
from indexer.store.records import TracedEntry, change_of, decode_entry
from indexer.tracing.current import Attributes, active_tracer
from scorer_api.following.followed_model import FollowedModel, FollowerContext
from scorer_api.following.followed_stream import FollowedStream, Verdict, judge, version_after
from scorer_api.following.reloader import RETRY_S, Reloader
from scorer_api.following.survey import Surveyor

# The log is read at this pace: without a pause each entry would cost a separate call.
PACE_S = 0.002
ENTRIES_MAX = 256
WAIT_MS = 500
# Entries are applied so long at a stretch before requests have their turn.
TURN_S = 0.002


class LogReader:
    """`run` ends with its cancellation."""

    def __init__(self, model: FollowedModel, context: FollowerContext, reloader: Reloader, surveyor: Surveyor) -> None:
        self._model = model
        self._reader, self._view, self._metrics = context.reader, context.view, context.metrics
        self._tracer = active_tracer()
        self._reloader = reloader
        self._surveyor = surveyor
        self._wait_ms = min(WAIT_MS, int(context.settings.redis_timeout_s * 500))

    async def run(self) -> None:
        """Read for good, once a survey has said where to begin."""
        model, surveyor = self._model, self._surveyor
        await surveyor.has_begun.wait()
        was_away = False
        while True:
            survey, log_epoch = surveyor.latest, model.log_epoch
            if self._reader.server_epoch != model.server_epoch:
                surveyor.is_due.set()  # it finds out where this server's log is
                await asyncio.sleep(RETRY_S)
                continue
            try:
                entries = await self._reader.entries(model.shard, model.offset, ENTRIES_MAX, 0 if survey is not None else self._wait_ms)
            except StoreError:
                was_away = True
                await asyncio.sleep(RETRY_S)
                continue
            if was_away:
                was_away = False
                surveyor.is_due.set()
            if self._reader.server_epoch != model.server_epoch:
                continue
            if await self._read(entries, log_epoch) and survey is not None and len(entries) < ENTRIES_MAX:
                surveyor.compare(survey)
            await asyncio.sleep(PACE_S)

    async def _read(self, entries: list[tuple[LogOffset, bytes | None]], log_epoch: int) -> bool:
        """Take these entries in turns. Returns whether they are still of the log that there is."""
        model = self._model
        began_s = time.monotonic()
        for offset, raw in entries:
            if log_epoch != model.log_epoch:
                break
            self._take(offset, raw)
            model.offset = offset
            if time.monotonic() - began_s > TURN_S:
                await asyncio.sleep(0)
                began_s = time.monotonic()
        if entries and log_epoch == model.log_epoch:
            model.note_heartbeat(model.offset[0])
        return log_epoch == model.log_epoch

    def _take(self, offset: LogOffset, raw: bytes | None) -> None:
        outcomes = self._metrics.entries
        try:
            entry = decode_entry(raw or b"")
            stream = self._model.streams.get(entry.stream)
            key = stream_of(self._model.name, entry.stream) if stream is None else stream.key
        except (msgspec.MsgspecError, ValueError):
            outcomes["unreadable"].inc()
            return
        if stream is None:
            if judge(None, entry) is Verdict.CLOSE:
                outcomes["known"].inc()
                return
            stream = self._model.open(entry.stream, key)
            self._surveyor.is_due.set()
        if offset <= stream.offset:
            outcomes["known"].inc()
            return
        self._carry_out(stream, offset, entry)

    def _carry_out(self, stream: FollowedStream, offset: LogOffset, entry: TracedEntry) -> None:
        outcomes = self._metrics.entries
        verdict = judge(stream.version, entry)
        if verdict is Verdict.CLOSE:
            outcomes["closed"].inc()
            self._model.remove(stream, offset)
        elif verdict is Verdict.EMPTY:
            outcomes["emptied"].inc()
            self._model.settle(stream, None, version_after(entry), offset, entry.trust)
        elif entry.stream in self._model.loads:
            outcomes["kept"].inc()
            if stream.buffered is not None:
                stream.buffer(offset, entry)
        elif verdict is Verdict.APPLY:
            self._apply(stream, offset, entry)
        elif verdict is Verdict.LOAD:
            outcomes["reload"].inc()
            self._reloader.load(stream, "new" if stream.version is None else "reload")
        else:
            outcomes["lost"].inc()
            self._reloader.mark_lost(stream, "lost")

    def _apply(self, stream: FollowedStream, offset: LogOffset, entry: TracedEntry) -> None:
        try:
            change = change_of(entry)
        except ValueError:
            self._metrics.entries["unreadable"].inc()
            self._reloader.mark_lost(stream, "lost")
            return
        if change and entry.shape is not None:
            self._view.append(stream.key, entry.shape, change)
        if self._tracer is not None:
            # By Redis's clock, which may be another.
            appended_ns = min(offset[0] * 1_000_000, time.time_ns())
            attributes: Attributes = {"kv.model": stream.key.model, "kv.pod": stream.key.pod, "kv.rank": stream.key.rank}
            self._tracer.past("kv_events.log", attributes, ("kv_events.follow", appended_ns), follows=entry.spans)
        stream.version, stream.offset = version_after(entry), offset
        if entry.trust is not stream.trust:
            stream.trust = entry.trust
            self._model.set_trust(stream)
        self._metrics.entries["applied"].inc()
