"""One stream's pipeline: take frames, put them in order, apply them, hand the changes to the store.

`Stream.run` decides, again and again, what is due:

    not connected          stale; expired and dropped after a while
    a new connection       confirm: does the same life go on? (replay of the last applied number)
    a gap                  replay from the next number on
    frames in the inbox    apply them, in turns
    silence                ask for the next number: a lost last batch shows no gap
"""

import asyncio
import logging
import math
import time
from contextlib import aclosing, suppress
from enum import Enum

import zmq
from msgspec import Struct

from indexer.config.settings import Settings
from indexer.core.names import StreamKey, Trust
from indexer.core.sequence import Joint, ReplayProgress, Sequence, Step, Verdict, join
from indexer.core.store import Point, Store
from indexer.core.stream_state import Counting, StreamState
from indexer.errors import Refused
from indexer.limits import ReceiveLimits
from indexer.metrics import IndexerMetrics
from indexer.receiving.inbox import Inbox
from indexer.receiving.replay import ReplayRequest
from indexer.receiving.subscription import Context
from indexer.store.records import Head
from indexer.streams.applier import Applier
from indexer.wire.frames import split_frames, split_reply

log = logging.getLogger(__name__)

# A stream works so long at a stretch before others and requests have their turn.
TURN_S = 0.002
# A batch that a replay has and that has not come within this time was lost on the way.
OVERTAKEN_S = 0.25
# An engine that was not reached for so long at the start is told of in the log.
UNREACHED_S = 5.0


class Outcome(Enum):
    """How a replay went."""

    ENDED = "ended"
    RESTARTED = "restarted"
    HOLE = "hole"
    CUT = "cut"
    UNANSWERED = "unanswered"
    ABANDONED = "abandoned"
    MISSED = "missed"
    """A probe found a batch that has not come."""


class StreamStatus(Struct, frozen=True):
    """A stream as `/v1/pods` shows it."""

    rank: int
    sequence: int | None
    trust: Trust
    connected: bool
    block_size: int | None
    blocks: dict[str, int]
    batches: int
    gaps: int
    replayed: int
    restarts: int
    last_batch_age_s: float | None
    last_error: str | None
    owner: str | None = None
    highest_token: int | None = None
    adapters: tuple[str, ...] = ()
    other_block_size: int | None = None
    events: str | None = None
    replay: str | None = None
    topic: str = ""


class ToldStatus(StreamStatus, frozen=True, kw_only=True):
    """The same as its owner writes it for all replicas. `http`: where the pod's own API begins."""

    http: str | None = None


class Stream:
    """Follows one rank of one pod. The task that runs `run` owns everything in here but the inbox."""

    def __init__(
        self,
        key: StreamKey,
        *,
        context: Context,
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
        guest: Inbox | None = None,
        limits: ReceiveLimits | None = None,
        owner: str | None = None,
    ) -> None:
        """`events`, `topic`: what its status says of where it is dialled. `dials_us`: the engine connects to us. `guest`: the inbox of one that
        nobody registered; it goes when its pod stays away.

        `limits`: of what waits until the stream runs, where these are not the settings'. `owner`: this indexer, where several share the streams.
        """
        self.key = key
        self._context = context
        self._events = events
        self._topic = topic
        self._replay_endpoint = replay_endpoint
        self.replay_address = replay_endpoint
        """What is dialled for replays; None as long as nobody knows the address that their endpoint's name has."""
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._turn = turn
        self._woken = asyncio.Event()
        self._dials_us = dials_us
        self._is_guest = guest is not None
        self.owner = owner
        self.inbox = Inbox(limits or settings.limits.receive) if guest is None else guest
        self.inbox.wake = self._woken.set
        self.settled = asyncio.Event()
        """Set once the first replay has ended or failed, or the first connection is up where there is none to ask."""

        self._applier = Applier(key, counting, offload_block_size, settings, store, metrics)
        self._sequence = Sequence()
        self._epoch = 0
        self._confirmed = False
        self._verified = False
        self._complete = False
        self._given_up = False
        self._lost_at: int | None = None
        self._replayed_to = -1
        self._head: tuple[int, list[bytes]] | None = None
        self._joins_until_s: float | None = None
        self._expired = False
        self._is_gone = False
        self._was_missed = False
        self._trust = Trust.STALE
        self._connected = False
        self._down_since_s = time.monotonic()
        self._silent_since_s = time.monotonic()
        self._probe_after_s = settings.limits.recovery.silence_s
        self._dropped_seen = 0

        self.batches = 0
        self.gaps = 0
        self.replayed = 0
        self.restarts = 0
        self._last_batch_s: float | None = None
        self._last_error: str | None = None

    @property
    def trust(self) -> Trust:
        if self._expired:
            return Trust.EXPIRED
        if not self.inbox.connected or self.inbox.epoch != self._epoch or not self._confirmed:
            return Trust.STALE
        return Trust.LIVE if self._complete else Trust.PARTIAL

    def status(self) -> StreamStatus:
        age_s = None if self._last_batch_s is None else round(time.monotonic() - self._last_batch_s, 3)
        return StreamStatus(
            rank=self.key.rank,
            sequence=self._sequence.last,
            trust=self.trust,
            connected=self.inbox.connected,
            block_size=self._applier.block_size,
            blocks=self._applier.blocks(),
            batches=self.batches,
            gaps=self.gaps,
            replayed=self.replayed,
            restarts=self.restarts,
            last_batch_age_s=age_s,
            last_error=self._last_error or self.inbox.error,
            owner=self.owner,
            highest_token=self._applier.state.highest_token,
            adapters=tuple(self._applier.state.adapters),
            other_block_size=self._applier.state.other_block_size,
            events=self._events,
            replay=self._replay_endpoint,
            topic=self._topic,
        )

    # Where several indexers share the streams

    @property
    def state(self) -> StreamState:
        """What the stream holds."""
        return self._applier.state

    @property
    def is_connected(self) -> bool:
        return self.inbox.connected

    def point(self) -> Point:
        """Where the stream stands between two batches."""
        return Point(self._sequence.last, self._sequence.fingerprint, self._complete, self.trust, self._applier.is_simulator)

    def resume(self, head: Head) -> None:
        """Go on from where a former owner was; the caller has put what it held into `state`."""
        self._sequence.resume(head.sequence, head.fingerprint)
        self._complete = head.complete
        self._applier.is_simulator = head.is_simulator
        if head.sequence is not None and self._replay_endpoint is None and not self._dials_us:
            self._joins_until_s = math.inf

    def begin(self) -> None:
        """From now on it is run. What was kept for this had limits of its own, and dropping the oldest of it was no loss."""
        self.inbox.limit(self._settings.limits.receive)
        self._dropped_seen = self.inbox.dropped
        self._down_since_s = self._silent_since_s = time.monotonic()

    def fail(self) -> None:
        """After an error of ours: hold nothing, and begin again."""
        self._applier.forget()
        self._forget_sequence()
        self._confirmed = False
        self._last_error = "an internal error, see the log"

    def close(self) -> None:
        """The stream ends: it counts no longer."""
        self._applier.close()

    async def run(self) -> None:
        """Ends by itself only for a guest that stays away; cancel it."""
        while not self._is_gone:
            self._woken.clear()
            self._say_trust()
            timeout_s = await self._act()
            self._say_trust()
            if timeout_s > 0:
                await self._wait(timeout_s)

    async def _act(self) -> float:
        """Do what is due. Returns how long to wait for something new, 0 when there is more to do."""
        newest = self.inbox.epoch
        if newest != self._epoch and self.inbox.connected and self._replay_endpoint is not None:
            return await self._meet(newest)
        if self._joins_until_s is not None and self.inbox:
            return self._join()
        # While it is to be joined, nothing is taken out of the inbox.
        head = self._peek() if self._joins_until_s is None else None
        if head is not None and head[0] == self._epoch:
            return await self._apply_turn()
        if newest != self._epoch and self.inbox.connected:
            return self._meet_unasked(newest if head is None else head[0])
        if not self.inbox.connected:
            if head is not None and self._replay_endpoint is None:
                self._begin(head[0])
                return 0.0
            return self._mourn()
        if self._can_ask and not self._confirmed:
            await self._recover()
            return 0.0
        return await self._listen()

    # Connections

    async def _meet(self, newest: int) -> float:
        """A new connection is up. The replay answers for everything that older ones brought."""
        self._discard_before(newest)
        self._begin(newest)
        await self._recover()
        return 0.0

    def _meet_unasked(self, epoch: int) -> float:
        """A new connection is up and nobody can be asked: what older ones brought still counts, in its order."""
        self._begin(epoch)
        self.settled.set()
        return 0.0

    def _join(self) -> float:
        """Taken over with nobody to ask: find in what was kept where the former owner was. Returns how long to wait for more."""
        kept = self.inbox.kept()
        readable = []
        for epoch, frames in kept:
            with suppress(Refused):
                readable.append((epoch, frames, split_frames(frames)))
        if not readable:
            self._joins_until_s = None
            return 0.0
        found = join(self._sequence, [numbered for _, _, numbered in readable])
        if found.joint is Joint.EARLY:
            now_s = time.monotonic()
            assert self._joins_until_s is not None, "only a stream that was taken over is joined"
            self._joins_until_s = min(self._joins_until_s, now_s + OVERTAKEN_S)
            if now_s < self._joins_until_s:
                return self._joins_until_s - now_s
        self._joins_until_s = None
        complete, number = self._complete, self._sequence.last
        if found.joint in (Joint.RESTARTED, Joint.EARLY):
            self._restart()
        if found.passed:
            epoch, frames, _ = readable[found.passed - 1]
            self.inbox.pass_over(frames)
            self._begin(epoch)
        if found.joint is Joint.SAME and number is not None:
            self._sequence.heard(number)
            self._confirmed, self._complete = True, complete
        self.settled.set()
        log.info("stream joined", extra={"pod": self.key.pod, "rank": self.key.rank, "sequence": number, "joint": found.joint.name.lower()})
        return 0.0

    def _peek(self) -> tuple[int, list[bytes]] | None:
        """The oldest message not yet applied, with the epoch it came in."""
        if self._head is None:
            self._head = self.inbox.take()
        return self._head

    def _discard_before(self, epoch: int) -> None:
        self.inbox.discard_before(epoch)
        if self._head is not None and self._head[0] < epoch:
            self._head = None

    def _begin(self, epoch: int) -> None:
        """Take up a new connection: nothing is confirmed on it yet."""
        if self._dials_us and self._replay_endpoint is None and self._sequence.last is not None:
            # Whoever dials us anew may be another life, and nobody can be asked.
            self._lose(is_same_life=False)
            self._forget_sequence()
        self._epoch = epoch
        self._expired = False
        self._sequence.connected()
        self._given_up = False
        self._replayed_to = -1
        self._verified = self._sequence.last is None
        # With nothing held and nobody to ask, nothing that is known can be wrong.
        self._confirmed = self._replay_endpoint is None and self._sequence.last is None
        self._complete = self._complete and self._replay_endpoint is not None
        self._rest()

    def _mourn(self) -> float:
        """The engine is away."""
        away_s = time.monotonic() - self._down_since_s
        if self.inbox.epoch == 0 and not self._was_missed:
            if away_s < UNREACHED_S:
                return min(UNREACHED_S, self._settings.pod_expiry_s) - away_s
            self._was_missed = True
            log.warning("engine not reached", extra={"pod": self.key.pod, "rank": self.key.rank, "error": self.inbox.error})
        left_s = self._settings.pod_expiry_s - away_s
        if left_s > 0:
            return left_s
        if not self._expired:
            self._expired = True
            self._applier.forget()
            self._forget_sequence()
        if not self._is_guest:
            return math.inf
        left_s += self._settings.pod_expiry_s
        self._is_gone = left_s <= 0
        return max(0.0, left_s)

    def _say_trust(self) -> None:
        connected = self.inbox.connected
        if self._connected and not connected:
            self._down_since_s = time.monotonic()
        self._connected = connected
        trust = self.trust
        if trust is self._trust:
            return
        log.info(
            "stream changed",
            extra={
                "pod": self.key.pod,
                "rank": self.key.rank,
                "trust": str(trust),
                "was": str(self._trust),
                "sequence": self._sequence.last,
                "error": self._last_error or self.inbox.error,
            },
        )
        self._trust = trust
        self._store.vouch(self.key, trust)

    # Recovery

    async def _recover(self) -> None:
        """Ask the engine until its history joins what was applied, it goes away, or it never answers."""
        self._confirmed = False
        self._say_trust()
        clock = time.monotonic
        unanswered_since_s = clock()
        pause_s = self._settings.limits.recovery.replay_retry_s
        while self.inbox.connected and self.inbox.epoch == self._epoch:
            outcome = await self._replay()
            self.settled.set()
            match outcome:
                case Outcome.ENDED:
                    self._confirmed = self._verified = True
                    self._complete = self._complete or self._sequence.last is None
                    self._last_error = None
                    return
                case Outcome.RESTARTED:
                    self._restart()
                case Outcome.ABANDONED:
                    return
                case Outcome.HOLE | Outcome.CUT:
                    unanswered_since_s = clock()
                case Outcome.UNANSWERED:
                    self._last_error = f"replay endpoint {self._replay_endpoint} does not answer"
                    if clock() - unanswered_since_s > self._settings.limits.recovery.replay_give_up_s:
                        self._give_up()
                        return
                    await self._wait_for_change(pause_s)
                    pause_s = min(2 * pause_s, self._settings.limits.recovery.replay_retry_max_s)

    async def _replay(self, *, is_probe: bool = False) -> Outcome:
        """One request, applied as its replies come in. A probe applies nothing, and gives way to live frames."""
        assert self._replay_endpoint is not None, "only a stream with a replay endpoint recovers"
        if self.replay_address is None:
            self._metrics.replays.labels(Outcome.UNANSWERED.value).inc()
            return Outcome.UNANSWERED
        epoch = self._epoch
        progress = ReplayProgress(self._sequence, verify=not self._verified)
        request = ReplayRequest(self._context, self.replay_address, progress.start, self._settings.limits.receive)

        def is_wanted() -> bool:
            return self.inbox.connected and self.inbox.epoch == epoch and not (is_probe and self.inbox)

        try:
            async with request, aclosing(request.replies(is_wanted)) as chunks:
                async for replies in chunks:
                    if self._store.has_limits:
                        await self._store.room(self.key)
                    async with self._turn:
                        outcome = self._apply_replies(progress, replies, is_probe=is_probe)
                        self._applier.tell()
                    if outcome is not None:
                        break
                else:
                    silent = Outcome.CUT if progress.replies else Outcome.UNANSWERED
                    outcome = silent if is_wanted() else Outcome.ABANDONED
        except zmq.ZMQError as error:
            log.warning("replay failed", extra={"pod": self.key.pod, "rank": self.key.rank, "error": str(error)})
            outcome = Outcome.UNANSWERED
        self._metrics.replays.labels(outcome.value).inc()
        return outcome

    def _apply_replies(self, progress: ReplayProgress, replies: list[list[bytes]], *, is_probe: bool) -> Outcome | None:
        for frames in replies:
            try:
                reply = split_reply(frames)
            except Refused as refused:
                self._note_refused(self._applier.refuse(refused.reason))
                continue
            if reply is None:
                return Outcome.RESTARTED if progress.ended() is Step.RESTARTED else Outcome.ENDED
            step = progress.reply(*reply)
            if is_probe and step is not Step.SKIP:
                return Outcome.MISSED
            was_verified = self._verified
            self._verified = self._verified or (progress.replies > 0 and step is not Step.RESTARTED)
            match step:
                case Step.RESTARTED:
                    return Outcome.RESTARTED
                case Step.HOLE:
                    return Outcome.HOLE
                case Step.SKIP:
                    continue
                case Step.LOST:
                    self._lose(is_same_life=was_verified)
                case Step.APPLY if reply[0] == 0:
                    self._complete = True
                case _:
                    pass
            self._apply(*reply, is_live=False)
            self._replayed_to = reply[0]
            self.replayed += 1
            self._metrics.replayed.inc()
        return None

    def _give_up(self) -> None:
        """Nobody answers: go on as if there were no replay endpoint, until the next connection."""
        log.warning("replay endpoint does not answer", extra={"pod": self.key.pod, "rank": self.key.rank, "endpoint": self._replay_endpoint})
        self._given_up = True
        self._verified = True
        self._complete = False
        self._confirmed = self._sequence.last is None

    def _restart(self) -> None:
        """Another life of the engine: nothing of the old one counts."""
        self.restarts += 1
        self._metrics.restarts.inc()
        log.info("engine restarted", extra={"pod": self.key.pod, "rank": self.key.rank, "sequence": self._sequence.last})
        self._applier.forget()
        self._forget_sequence()

    def _forget_sequence(self) -> None:
        self._sequence.forget()
        self._joins_until_s = None
        self._verified = True
        self._complete = False
        self._lost_at = None

    def _lose(self, *, is_same_life: bool) -> None:
        """What was missed cannot be had again: some of what is held is gone at the engine, nobody knows which."""
        if self._sequence.last is not None:
            self._metrics.losses.inc()
            log.warning("history lost", extra={"pod": self.key.pod, "rank": self.key.rank, "sequence": self._sequence.last})
            if is_same_life:
                self._applier.lose()
            else:
                self._applier.forget()
        self._complete = False

    # Live frames

    async def _apply_turn(self) -> float:
        """Apply what the inbox holds of this connection, for one turn."""
        if self._store.has_limits:
            await self._store.room(self.key)
        async with self._turn:
            until_s = time.monotonic() + TURN_S
            while (head := self._peek()) is not None and head[0] == self._epoch:
                self._head = None
                if not self._apply_frames(head[1]):
                    self._head = head
                    break
                if time.monotonic() >= until_s:
                    break
            self._applier.tell()
        if self.inbox.dropped != self._dropped_seen:
            dropped, self._dropped_seen = self.inbox.dropped - self._dropped_seen, self.inbox.dropped
            self._metrics.inbox_dropped.inc(dropped)
        if self._head is not None and self._head[0] == self._epoch and not self._confirmed:
            await self._recover()
            if not self.inbox.connected:
                self._discard_before(self._epoch + 1)  # the next connection's replay answers for it
        await asyncio.sleep(0)
        return 0.0

    @property
    def _can_ask(self) -> bool:
        return self._replay_endpoint is not None and not self._given_up

    def _apply_frames(self, frames: list[bytes]) -> bool:
        """Apply one live message. False: not before a replay; leave it where it is."""
        try:
            number, payload = split_frames(frames)
        except Refused as refused:
            self._note_refused(self._applier.refuse(refused.reason))
            return True
        match self._sequence.judge(number):
            case Verdict.NEXT:
                pass
            case Verdict.RESTART:
                self._restart()
                if self._can_ask:
                    self._confirmed = False
                    return False
            case Verdict.DUPLICATE if self._can_ask or number <= self._replayed_to:
                self._sequence.heard(number)
                return True
            case Verdict.DUPLICATE:
                self._restart()
            case Verdict.GAP if self._can_ask:
                return self._step_over_gap(number, payload)
            case Verdict.GAP if self._sequence.last is not None:
                self._note_gap()
                self._lose(is_same_life=self._sequence.has_heard)
            case _:
                pass
        is_first = self._sequence.last is None
        if is_first and number == 0:
            self._complete = True
        self._confirmed = True
        self._sequence.heard(number)
        self._apply(number, payload, is_live=True)
        if is_first and number == self._applier.first_number == 1:
            self._complete = True
        return True

    def _step_over_gap(self, number: int, payload: bytes) -> bool:
        """A gap with somebody to ask. The same gap after a complete replay is permanent."""
        expected = self._sequence.expected
        if self._lost_at != expected or not self._confirmed:
            if self._lost_at != expected:
                self._note_gap()
            self._lost_at = expected
            self._confirmed = False
            return False
        self._lose(is_same_life=True)
        self._sequence.heard(number)
        self._apply(number, payload, is_live=True)
        return True

    def _note_gap(self) -> None:
        self.gaps += 1
        self._metrics.gaps.inc()

    async def _listen(self) -> float:
        """Nothing to do. After some silence, ask whether the last batch was lost."""
        if not self._can_ask:
            return math.inf
        left_s = self._probe_after_s - (time.monotonic() - self._silent_since_s)
        if left_s > 0:
            return left_s
        match await self._replay(is_probe=True):
            case Outcome.MISSED:
                # It may be on its way: a reply can overtake what was published just now.
                await self._wait_for_frames(OVERTAKEN_S)
                if not self.inbox and self.inbox.connected:
                    self._note_gap()
                    await self._recover()
            case Outcome.UNANSWERED:
                self._last_error = f"replay endpoint {self._replay_endpoint} does not answer"
            case Outcome.ENDED:
                self._last_error = None
            case _:
                pass
        self._silent_since_s = time.monotonic()
        self._probe_after_s = min(2 * self._probe_after_s, self._settings.limits.recovery.silence_max_s)
        return 0.0

    def _rest(self) -> None:
        """Something was heard: silence begins anew."""
        self._silent_since_s = time.monotonic()
        self._probe_after_s = self._settings.limits.recovery.silence_s

    def _apply(self, number: int, payload: bytes, *, is_live: bool) -> None:
        """Apply one batch, readable or not: its number is done with either way."""
        applied = self._applier.apply(payload, number, is_live=is_live)
        if applied.cleared:
            self._complete = True
        self._note_refused(applied.lossy)
        self._sequence.applied(number, payload)
        self._store.recorded(self.key)
        self.batches += 1
        self._last_batch_s = time.monotonic()
        self._rest()

    def _note_refused(self, lossy: str | None) -> None:
        """`lossy`: the reason of a refusal after which something may be missing."""
        if lossy is not None:
            self._complete = False
            self._last_error = f"refused: {lossy}"

    # Waiting

    async def _wait(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(None if math.isinf(timeout_s) else timeout_s):
                await self._woken.wait()
        except TimeoutError:
            pass

    async def _wait_for_frames(self, timeout_s: float) -> None:
        until_s = time.monotonic() + timeout_s
        while not self.inbox and (left_s := until_s - time.monotonic()) > 0:
            self._woken.clear()
            await self._wait(left_s)

    async def _wait_for_change(self, timeout_s: float) -> None:
        """Wait, but not longer than the connection stays as it is."""
        epoch = self.inbox.epoch
        until_s = time.monotonic() + timeout_s
        while self.inbox.connected and self.inbox.epoch == epoch and (left_s := until_s - time.monotonic()) > 0:
            self._woken.clear()
            await self._wait(left_s)
