"""One stream's pipeline: take frames, put them in order, apply them, hand the changes to the store.

`Stream.run` decides, again and again, what is due:

    not connected          stale; expired and dropped after a while
    a new connection       confirm: does the same process go on? (replay of the last applied number)
    a gap                  replay from the next number on
    frames in the inbox    apply them, in turns
    silence                ask for the next number: a lost last batch shows no gap
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable

from indexer.config.settings import Settings
from indexer.core.names import StreamKey, Trust
from indexer.core.sequence import Verdict
from indexer.core.store import Store, StreamPosition
from indexer.core.stream_state import Counting, StreamState
from indexer.errors import Refused
from indexer.limits import ReceiveLimits
from indexer.metrics import IndexerMetrics
from indexer.receiving.inbox import Inbox
from indexer.receiving.room import Room
from indexer.store.records import Head
from indexer.streams.applier import MIXED_RANKS, Applier, Observe
from indexer.streams.progress import TURN_S, StreamProgress
from indexer.streams.recovery import Recovery, ReplayOutcome
from indexer.streams.status import StreamStatus
from indexer.streams.takeover import Takeover
from indexer.streams.trust import Phase, Signal
from indexer.streams.wakeup import Wakeup
from indexer.wire.frames import split_frames

log = logging.getLogger(__name__)

# A batch that a replay has and that has not come within this time was lost on the way.
OVERTAKEN_S = 0.25
# An engine that was not reached for so long at the start is logged.
UNREACHED_S = 5.0


class Stream:
    """Follows one rank of one pod. The task that runs `run` owns everything in here but the inbox."""

    def __init__(
        self,
        key: StreamKey,
        *,
        room: Room,
        replay_endpoint: str | None,
        counting: Counting,
        offload_block_size: int | None,
        settings: Settings,
        store: Store,
        metrics: IndexerMetrics,
        turn: asyncio.Lock,
        events: str | None = None,
        topic: str = "",
        dials_us: bool = False,
        dial_in_inbox: Inbox | None = None,
        limits: ReceiveLimits | None = None,
        owner: str | None = None,
        dropped_blocks: int = 0,
        shares_port: bool = False,
        snapshot: str | None = None,
        note_rank: Callable[[StreamKey, int], bool] | None = None,
        observe: Observe | None = None,
    ) -> None:
        """`events`, `topic`: where it is dialled, for its status. `dials_us`: the engine connects to us. `dial_in_inbox`: the inbox
        of a pod that is not registered; the stream ends when the pod stays away.

        `limits`: of what waits until the stream runs, where these are not the settings'. `owner`: this indexer, where several share the streams.
        `dropped_blocks`: how many of the last matched blocks the engine computes again. `snapshot`: how it is asked for all that it holds.
        `shares_port`, `note_rank`, `observe`: see `Applier`.
        """
        self.key = key
        self._events, self._topic = events, topic
        self._replay_endpoint = replay_endpoint
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._turn = turn
        self._dials_us = dials_us
        self._is_dial_in = dial_in_inbox is not None
        self.owner, self._dropped_blocks = owner, dropped_blocks
        self.inbox = Inbox(limits or settings.limits.receive, room=room) if dial_in_inbox is None else dial_in_inbox
        self.settled = asyncio.Event()
        """Set once the first replay has ended or failed, or the first connection is up where there is none to ask."""
        self._wakeup = Wakeup(self.inbox)
        self._applier = Applier(
            *(key, counting, offload_block_size, settings, metrics, note_rank, observe), with_records=store.needs_records, shares_port=shares_port
        )
        self._progress = StreamProgress(key, self._applier, self.inbox, store, metrics)
        self._takeover = Takeover(self._progress)
        self._recovery: Recovery | None = None
        if replay_endpoint is not None:
            where = (self._progress, replay_endpoint, room, settings, snapshot)
            self._recovery = Recovery(*where, turn=turn, wakeup=self._wakeup, settled=self.settled)
        self._has_ended = self._was_unreached = self._was_connected = False
        self._down_since_s = self._silent_since_s = time.monotonic()
        self._probe_after_s = settings.limits.recovery.silence_s
        self._dropped_seen = 0

    @property
    def trust(self) -> Trust:
        """How far the stream's content can be relied on now."""
        return self._progress.trust

    @property
    def last_batch_s(self) -> float | None:
        """When the last batch was applied, by the monotonic clock; None before the first."""
        return self._progress.last_batch_s

    @property
    def last_error(self) -> str | None:
        return self._progress.last_error or (MIXED_RANKS if self._applier.has_mixed_ranks else self.inbox.error)

    def dial_replays_at(self, address: str | None) -> None:
        """`address`: what to dial in place of the replay endpoint's name; None while it is unknown."""
        if self._recovery is not None:
            self._recovery.address = address

    def status(self) -> StreamStatus:
        """As `/v1/pods` shows it."""
        progress, state = self._progress, self._applier.state
        return StreamStatus(
            rank=self.key.rank,
            sequence=progress.sequence.last,
            trust=progress.trust,
            connected=self.inbox.connected,
            block_size=self._applier.block_size,
            blocks=self._applier.blocks(),
            batches=progress.batches,
            gaps=progress.gaps,
            replayed=progress.replayed,
            restarts=progress.restarts,
            last_batch_age_s=None if progress.last_batch_s is None else round(time.monotonic() - progress.last_batch_s, 3),
            last_error=self.last_error,
            owner=self.owner,
            highest_token=state.highest_token,
            adapters=tuple(state.adapters),
            other_block_size=state.other_block_size,
            groups=self._applier.groups(),
            undecided=state.undecided,
            announcements=self._applier.announcements,
            refused=dict(self._applier.refused),
            events=self._events,
            replay=self._replay_endpoint,
            topic=self._topic,
            drops_last_block=self._dropped_blocks,
        )

    # Where several indexers share the streams

    @property
    def state(self) -> StreamState:
        """What the stream holds."""
        return self._applier.state

    @property
    def is_connected(self) -> bool:
        return self.inbox.connected

    @property
    def position(self) -> StreamPosition:
        """The stream's position between two batches."""
        return self._progress.position

    def resume(self, head: Head) -> None:
        """Go on from where a former owner was; the caller has put what it held into `state`."""
        self._progress.resume(head)
        if head.sequence is not None and self._replay_endpoint is None and not self._dials_us:
            self._takeover.begin()

    def begin(self) -> None:
        """From now on it is run. Frames kept until now had other limits, and dropping the oldest of them was no loss."""
        self.inbox.limit(self._settings.limits.receive)
        self._dropped_seen = self.inbox.dropped
        self._down_since_s = self._silent_since_s = time.monotonic()

    def forget_adapter(self, name: str) -> None:
        """Hold no block of this LoRA adapter any more: its weights are others now."""
        self._progress.forget_adapter(name)
        self._wakeup.wake()

    def fail(self) -> None:
        """After an error of ours: hold nothing, and begin again."""
        self._takeover.end()
        self._progress.fail()

    def close(self) -> None:
        """The stream ends: it counts no longer."""
        self._applier.close()

    async def run(self) -> None:
        """Ends by itself only for a dial-in pod that stays away; cancel it."""
        while not self._has_ended:
            self._wakeup.clear()
            self._note_connection()
            timeout_s = await self._act()
            self._note_connection()
            if timeout_s > 0:
                await self._wakeup.wait(timeout_s)

    async def _act(self) -> float:
        """Do what is due. Returns how long to wait for something new, 0 when there is more to do."""
        progress, newest = self._progress, self.inbox.epoch
        if progress.is_replaced:
            return math.inf
        await progress.finish_batch(self._turn)
        is_new = newest != progress.epoch and self.inbox.connected
        if is_new and self._recovery is not None:
            return await self._take_up_and_recover(newest, self._recovery)
        if self._takeover.is_pending and self.inbox:
            return self._join()
        # While a takeover is pending, nothing is taken out of the inbox.
        message = None if self._takeover.is_pending else self.inbox.peek()
        if message is not None and message[0] == progress.epoch:
            await self._apply_turn()
            if self.inbox or progress.is_replaced or not progress.is_current:
                await asyncio.sleep(0)
                return 0.0
        elif is_new:
            return self._take_up_unasked(newest if message is None else message[0])
        elif not self.inbox.connected:
            if message is not None and self._recovery is None:
                self._take_up(message[0])
                return 0.0
            return self._expire_if_away()
        if self._recovery is not None and self._can_ask and self._recovery.is_due:
            await self._recovery.recover()
            return 0.0
        return await self._listen()

    # Connections

    async def _take_up_and_recover(self, epoch: int, recovery: Recovery) -> float:
        """A new connection is up. The replay answers for everything that older ones brought."""
        self.inbox.discard_before(epoch)
        self._take_up(epoch)
        await recovery.recover()
        return 0.0

    def _take_up_unasked(self, epoch: int) -> float:
        """A new connection is up and no replay is possible: batches of older ones still count, in their order."""
        self._take_up(epoch)
        self.settled.set()
        return 0.0

    def _join(self) -> float:
        wait_s = self._takeover.join()
        if not self._takeover.is_pending:
            self.settled.set()
        return wait_s

    def _take_up(self, epoch: int) -> None:
        """Take up a new connection: nothing is confirmed on it yet."""
        progress = self._progress
        if self._dials_us and self._recovery is None and progress.sequence.last is not None:
            # An engine that dials us again may be another process, and no replay is possible.
            progress.lose_history(is_same_process=False)
            progress.forget()
        progress.take_up(epoch, has_replay=self._recovery is not None)

    def _note_connection(self) -> None:
        """Notice when the connection went down, and publish the trust that follows."""
        connected = self.inbox.connected
        if self._was_connected and not connected:
            self._down_since_s = time.monotonic()
        self._was_connected = connected
        self._progress.publish_trust()

    def _expire_if_away(self) -> float:
        """The engine is away: drop what it held once that lasts too long. Returns how long to wait for it."""
        away_s = time.monotonic() - self._down_since_s
        if self.inbox.epoch == 0 and not self._was_unreached:
            if away_s < UNREACHED_S:
                return min(UNREACHED_S, self._settings.pod_expiry_s) - away_s
            self._was_unreached = True
            log.warning("engine not reached", extra={"pod": self.key.pod, "rank": self.key.rank, "error": self.inbox.error})
        left_s = self._settings.pod_expiry_s - away_s
        if left_s > 0:
            return left_s
        if self._progress.state.phase is not Phase.EXPIRED:
            self._takeover.end()
            self._progress.expire()
        if not self._is_dial_in:
            return math.inf
        left_s += self._settings.pod_expiry_s
        self._has_ended = left_s <= 0
        return max(0.0, left_s)

    # Live frames

    @property
    def _can_ask(self) -> bool:
        return self._recovery is not None and self._progress.state.can_be_asked

    async def _apply_turn(self) -> None:
        """Apply what the inbox holds of this connection, for one turn."""
        progress = self._progress
        if self._store.has_limits:
            await self._store.room(self.key)
        waits = False
        async with self._turn:
            until_s = time.monotonic() + TURN_S
            while (
                not waits and progress.go_on(until_s) and not progress.is_replaced and (oldest := self.inbox.peek()) and oldest[0] == progress.epoch
            ):
                waits = progress.apply_waiting(self._apply_frames, until_s)
                if time.monotonic() >= until_s:
                    break
            self._applier.count_applied()
        await progress.finish_batch(self._turn)
        if self.inbox.dropped != self._dropped_seen:
            dropped, self._dropped_seen = self.inbox.dropped - self._dropped_seen, self.inbox.dropped
            self._metrics.inbox_dropped.inc(dropped)
        if self._recovery is not None and waits and not progress.state.is_confirmed:
            await self._recovery.recover()
            if not self.inbox.connected:
                self.inbox.discard_before(progress.epoch + 1)  # the next connection's replay answers for it

    def _apply_frames(self, frames: list[bytes]) -> bool:
        """Apply one live message. False: not before a replay; leave it where it is."""
        progress, sequence = self._progress, self._progress.sequence
        try:
            number, payload = split_frames(frames)
        except Refused as refused:
            progress.refuse(refused.reason)
            return True
        match sequence.judge(number):
            case Verdict.RESTART:
                progress.restart()
                if self._can_ask:
                    progress.note(Signal.RECOVERY_STARTED)
                    return False
            case Verdict.DUPLICATE if self._can_ask or number <= progress.replayed_to:
                sequence.note_live(number)
                return True
            case Verdict.DUPLICATE:
                progress.restart()
            case Verdict.GAP if self._can_ask:
                if progress.is_permanent_gap():
                    progress.lose_history(is_same_process=True)
                    progress.apply_live(number, payload)
                    return True
                return False
            case Verdict.GAP if sequence.last is not None:
                progress.note_gap()
                progress.lose_history(is_same_process=sequence.has_live_batch)
        if sequence.last is None and number == 0:
            progress.note(Signal.WHOLE)
        progress.apply_live(number, payload)
        return True

    async def _listen(self) -> float:
        """Nothing to do. After some silence, ask whether the last batch was lost."""
        if self._recovery is None or not self._can_ask:
            return math.inf
        self._note_heard()
        left_s = self._probe_after_s - (time.monotonic() - self._silent_since_s)
        if left_s > 0:
            return left_s
        match await self._recovery.replay(is_probe=True):
            case ReplayOutcome.MISSED:
                # It may be on its way: a reply can overtake what was published just now.
                await self._wakeup.wait_for_frames(OVERTAKEN_S)
                if not self.inbox and self.inbox.connected:
                    self._progress.note_gap()
                    await self._recovery.recover()
            case ReplayOutcome.UNANSWERED:
                self._recovery.note_unanswered()
            case ReplayOutcome.ENDED:
                self._progress.last_error = None
        self._note_heard()
        self._silent_since_s = time.monotonic()
        self._probe_after_s = min(2 * self._probe_after_s, self._settings.limits.recovery.silence_max_s)
        return 0.0

    def _note_heard(self) -> None:
        """The silence starts again after each message."""
        if self._progress.heard_s > self._silent_since_s:
            self._silent_since_s, self._probe_after_s = self._progress.heard_s, self._settings.limits.recovery.silence_s
