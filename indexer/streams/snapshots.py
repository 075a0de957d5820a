"""Taking an engine's snapshot in place of what was never heard: a stream that joins late, or that lost history, is whole again."""

import asyncio
import logging
import time
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from enum import Enum
from functools import partial

import msgspec

from indexer.config.settings import Settings
from indexer.errors import Refused
from indexer.receiving.replay import AHEAD_BYTES_MAX, ReplayRequest
from indexer.receiving.room import Room
from indexer.streams.progress import StreamProgress
from indexer.wire.snapshots import SnapshotBatch, SnapshotDialect, SnapshotReading, UnavailableError

log = logging.getLogger(__name__)

# An engine may take so long to make a snapshot that it sends as one message. The stream is not followed meanwhile.
ANSWER_S = 10.0
# A snapshot that comes as one message has to be in memory as a whole.
WHOLE_BYTES_MAX = AHEAD_BYTES_MAX


class SnapshotOutcome(Enum):
    """How asking for a snapshot went."""

    LOADED = "loaded"
    NONE = "none"
    """The engine has none: it does not know the request, or cannot make one."""
    UNAVAILABLE = "unavailable"
    """It has none at present."""
    REFUSED = "refused"
    """A part could not be read, or all of it was too large."""
    HOLE = "hole"
    """A part is missing: blocks wait for a parent that did not come."""
    CUT = "cut"
    """The parts stopped before the end."""
    UNANSWERED = "unanswered"
    ABANDONED = "abandoned"
    """The connection went down."""


class Snapshots:
    """Loads snapshots of one stream, and says when. What is applied is done with by batch `resume` - 1; live batches from there on follow."""

    def __init__(self, progress: StreamProgress, dialect: SnapshotDialect, room: Room, settings: Settings, turn: asyncio.Lock) -> None:
        self._progress = progress
        self._dialect = dialect
        self._room = room
        self._settings = settings
        self._turn = turn
        self._epoch = -1
        self._not_before_s = 0.0
        self._pause_s = 0.0

    @property
    def is_due(self) -> bool:
        """Whether something is missing, and the engine may be asked for a snapshot now."""
        progress = self._progress
        if self._epoch != progress.epoch:
            return not progress.state.is_complete or progress.sequence.last is None
        return not progress.state.is_complete and time.monotonic() >= self._not_before_s

    async def load(self, address: str) -> SnapshotOutcome:
        """Ask, and hold what the snapshot says in place of what was held. Where it fails midway nothing is held."""
        progress, limits = self._progress, self._settings.limits.recovery
        if self._epoch != progress.epoch:
            self._epoch, self._pause_s = progress.epoch, limits.snapshot_retry_s
        outcome = await self._request(address)
        progress.metrics.snapshots.labels(outcome.value).inc()
        # One that has none will have none later on this connection.
        self._not_before_s = time.monotonic() + (float("inf") if outcome is SnapshotOutcome.NONE else self._pause_s)
        self._pause_s = min(2 * self._pause_s, limits.snapshot_retry_max_s)
        return outcome

    async def _request(self, address: str) -> SnapshotOutcome:
        progress, limits = self._progress, self._settings.limits
        epoch, inbox = progress.epoch, progress.inbox
        reading = SnapshotReading(self._dialect, limits.recovery.snapshot_bytes_max, counts_copies=progress.applier.state.counting == "copies")
        request = self._request_at(address)

        def is_wanted() -> bool:
            return inbox.connected and inbox.epoch == epoch

        outcome = SnapshotOutcome.UNANSWERED
        try:
            async with self._alone, request, aclosing(request.replies(is_wanted)) as chunks:
                async for replies in chunks:
                    outcome = SnapshotOutcome.CUT
                    if progress.store.has_limits:
                        await progress.store.room(progress.key)
                    parts = [part for frames in replies for part in reading.parts(frames)]
                    ended = await progress.apply_in_turns(parts, partial(self._apply, reading), self._turn, SnapshotOutcome.ABANDONED)
                    if ended is not None:
                        outcome = ended
                        break
        except OSError as error:
            log.warning("snapshot failed", extra={**progress.log_names, "error": str(error)})
        except UnavailableError:
            return SnapshotOutcome.UNAVAILABLE
        except Refused as refused:
            progress.metrics.refused.labels(refused.reason).inc()
            progress.last_error = f"snapshot refused: {refused.reason}"
            outcome = SnapshotOutcome.REFUSED
        if outcome in (SnapshotOutcome.LOADED, SnapshotOutcome.NONE) or progress.is_replaced:
            return outcome
        if not is_wanted():
            outcome = SnapshotOutcome.ABANDONED
        if reading.resume is not None:
            log.warning("snapshot failed", extra={**progress.log_names, "error": outcome.value})
            progress.forget()
        return outcome

    def _request_at(self, address: str) -> ReplayRequest:
        limits = self._settings.limits
        if not self._dialect.is_one_message:
            return ReplayRequest(address, self._dialect.request, limits.receive, self._room)
        size = min(limits.recovery.snapshot_bytes_max, WHOLE_BYTES_MAX)
        receive = msgspec.structs.replace(limits.receive, frame_bytes_max=size)
        return ReplayRequest(address, self._dialect.request, receive, self._room, ANSWER_S)

    @property
    def _alone(self) -> AbstractAsyncContextManager[None]:
        """What is waited for where too many are received as one message."""
        return self._room.whole_snapshots if self._dialect.is_one_message else nullcontext()

    def _apply(self, reading: SnapshotReading, part: SnapshotBatch | None) -> SnapshotOutcome | None:
        """Returns how the snapshot went where it is over. Raises Refused."""
        progress = self._progress
        if part is None:
            return self._end(reading)
        is_first = reading.resume is None
        payload = reading.read(part)
        if is_first:
            progress.begin_snapshot(part.resume)
        progress.apply_snapshot(payload, reading.keeps)
        return SnapshotOutcome.ABANDONED if progress.is_replaced else None

    def _end(self, reading: SnapshotReading) -> SnapshotOutcome:
        if reading.resume is None:
            return SnapshotOutcome.NONE
        if self._progress.applier.state.orphans.parked:  # copies under foreign hashes wait for the gpu, not for a part
            return SnapshotOutcome.HOLE
        log.info("snapshot loaded", extra={**self._progress.log_names, "sequence": self._progress.sequence.last})
        return SnapshotOutcome.LOADED
