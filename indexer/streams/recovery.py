"""Asking an engine for what is missing, until its history joins what was applied."""

import asyncio
import logging
import time
from contextlib import aclosing
from enum import Enum
from functools import partial

from indexer.config.settings import Settings
from indexer.core.sequence import ReplayProgress, Step
from indexer.engines.spec import AT_REPLAY, at_port_of, port_of
from indexer.errors import Refused
from indexer.receiving.replay import ReplayRequest
from indexer.receiving.room import Room
from indexer.streams.progress import StreamProgress
from indexer.streams.snapshots import Snapshots
from indexer.streams.trust import Signal
from indexer.streams.wakeup import Wakeup
from indexer.wire.frames import split_reply
from indexer.wire.snapshots import AT_OWN_ENDPOINT, ON_REPLAY_SOCKET

log = logging.getLogger(__name__)


class ReplayOutcome(Enum):
    """How a replay went."""

    ENDED = "ended"
    RESTARTED = "restarted"
    """Another process of the engine answers."""
    HOLE = "hole"
    """A reply is missing in the middle."""
    CUT = "cut"
    """The replies stopped before the end."""
    UNANSWERED = "unanswered"
    ABANDONED = "abandoned"
    """The connection went down, or live frames came during a probe."""
    MISSED = "missed"
    """A probe found a batch that has not come."""


class Recovery:
    """Replays one stream. `endpoint`: as it was configured. `address`: what is dialled; None while the address of the endpoint's name is unknown."""

    def __init__(
        self,
        progress: StreamProgress,
        endpoint: str,
        room: Room,
        settings: Settings,
        snapshot: str | None = None,
        *,
        turn: asyncio.Lock,
        wakeup: Wakeup,
        settled: asyncio.Event,
    ) -> None:
        """`settled`: to be set once the first replay has ended or failed. `snapshot`: where the engine is asked for one, `replay` or an endpoint;
        None if it has none.
        """
        self.endpoint = endpoint
        self.address: str | None = endpoint
        self._settled = settled
        self._progress = progress
        self._room = room
        self._settings = settings
        self._turn = turn
        self._wakeup = wakeup
        self._snapshot_at = None if snapshot == AT_REPLAY else snapshot
        dialect = ON_REPLAY_SOCKET if self._snapshot_at is None else AT_OWN_ENDPOINT
        # What was registered in Redis is not checked as specs are.
        is_odd = self._snapshot_at is not None and None in (port_of(endpoint), port_of(self._snapshot_at))
        self._snapshots = None if snapshot is None or is_odd else Snapshots(progress, dialect, room, settings, turn)

    @property
    def is_due(self) -> bool:
        """Whether the engine should be asked before anything is listened to."""
        return not self._progress.state.is_confirmed or self._is_snapshot_due

    @property
    def _is_snapshot_due(self) -> bool:
        return self._snapshots is not None and self.address is not None and self._snapshots.is_due

    async def recover(self) -> None:
        """Ask the engine until its history joins what was applied, it goes away, or it never answers."""
        progress, clock = self._progress, time.monotonic
        progress.note(Signal.RECOVERY_STARTED)
        progress.publish_trust()
        unanswered_since_s = clock()
        pause_s = self._settings.limits.recovery.replay_retry_s
        while progress.is_current:
            await progress.finish_batch(self._turn)
            await self._load_snapshot()
            outcome = await self.replay()
            self._settled.set()
            match outcome:
                case ReplayOutcome.ENDED:
                    progress.note(Signal.REPLAYED_EMPTY if progress.sequence.last is None else Signal.REPLAYED)
                    progress.last_error = None
                    if not self._is_snapshot_due:
                        return
                    progress.note(Signal.RECOVERY_STARTED)
                case ReplayOutcome.RESTARTED:
                    progress.restart()
                case ReplayOutcome.ABANDONED:
                    return
                case ReplayOutcome.HOLE | ReplayOutcome.CUT:
                    unanswered_since_s = clock()
                case ReplayOutcome.UNANSWERED:
                    self.note_unanswered()
                    if clock() - unanswered_since_s > self._settings.limits.recovery.replay_give_up_s:
                        self.give_up()
                        return
                    await self._wakeup.wait_while_connected(pause_s)
                    pause_s = min(2 * pause_s, self._settings.limits.recovery.replay_retry_max_s)

    async def _load_snapshot(self) -> None:
        """If one is due. The replay that follows closes the time between it and the connection."""
        if self._snapshots is not None and self.address is not None and self._snapshots.is_due:
            await self._snapshots.load(self.address if self._snapshot_at is None else at_port_of(self.address, self._snapshot_at))

    def note_unanswered(self) -> None:
        """Say so in the stream's status."""
        self._progress.last_error = f"replay endpoint {self.endpoint} does not answer"

    def give_up(self) -> None:
        """No answer: go on as if there were no replay endpoint, until the next connection."""
        progress = self._progress
        log.warning("replay endpoint does not answer", extra={**progress.log_names, "endpoint": self.endpoint})
        progress.note(Signal.GAVE_UP_EMPTY if progress.sequence.last is None else Signal.GAVE_UP)

    async def replay(self, *, is_probe: bool = False) -> ReplayOutcome:
        """One request, applied as its replies come in. A probe applies nothing, and gives way to live frames."""
        outcome = ReplayOutcome.UNANSWERED if self.address is None else await self._request(self.address, is_probe=is_probe)
        self._progress.metrics.replays.labels(outcome.value).inc()
        return outcome

    async def _request(self, address: str, *, is_probe: bool) -> ReplayOutcome:
        progress, store = self._progress, self._progress.store
        epoch, inbox = progress.epoch, progress.inbox
        replies_read = ReplayProgress(progress.sequence, verify=not progress.state.is_verified)
        request = ReplayRequest(address, replies_read.start, self._settings.limits.receive, self._room)

        def is_wanted() -> bool:
            return inbox.connected and inbox.epoch == epoch and not (is_probe and inbox)

        try:
            async with request, aclosing(request.replies(is_wanted)) as chunks:
                async for replies in chunks:
                    if store.has_limits:
                        await store.room(progress.key)
                    apply = partial(self._apply_reply, replies_read, is_probe=is_probe)
                    outcome = await progress.apply_in_turns(replies, apply, self._turn, ReplayOutcome.ABANDONED)
                    if outcome is not None:
                        return outcome
        except OSError as error:
            log.warning("replay failed", extra={**progress.log_names, "error": str(error)})
            return ReplayOutcome.UNANSWERED
        if not is_wanted():
            return ReplayOutcome.ABANDONED
        return ReplayOutcome.CUT if replies_read.replies else ReplayOutcome.UNANSWERED

    def _apply_reply(self, replies_read: ReplayProgress, frames: list[bytes], *, is_probe: bool) -> ReplayOutcome | None:
        """Returns how the replay went where it is over."""
        progress = self._progress
        try:
            reply = split_reply(frames)
        except Refused as refused:
            progress.refuse(refused.reason)
            return None
        if reply is None:
            return ReplayOutcome.RESTARTED if replies_read.ended() is Step.RESTARTED else ReplayOutcome.ENDED
        step = replies_read.reply(*reply)
        if is_probe and step is not Step.SKIP:
            return ReplayOutcome.MISSED
        was_verified = progress.state.is_verified
        if replies_read.replies > 0 and step is not Step.RESTARTED:
            progress.note(Signal.VERIFIED)
        match step:
            case Step.RESTARTED:
                return ReplayOutcome.RESTARTED
            case Step.HOLE:
                return ReplayOutcome.HOLE
            case Step.SKIP:
                return None
            case Step.LOST:
                progress.lose_history(is_same_process=was_verified)
            case Step.APPLY if reply[0] == 0:
                progress.note(Signal.WHOLE)
            case _:
                pass
        progress.apply_replayed(*reply)
        return ReplayOutcome.ABANDONED if progress.is_replaced else None
