"""How far one stream was applied: its sequence, what it holds, how far that can be relied on, and what was counted on the way.

More than 400 lines: each part of it reads what the others change.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

from indexer.core.event_pieces import Steps
from indexer.core.events import Event
from indexer.core.names import StreamKey, Trust
from indexer.core.sequence import Sequence
from indexer.core.store import Store, StreamPosition
from indexer.metrics import IndexerMetrics
from indexer.receiving.inbox import Inbox
from indexer.store.records import Head
from indexer.streams.applier import Applied, Applier
from indexer.streams.trust import CONFIRMED_PHASES, Phase, Signal, TrustState
from indexer.wire.decoder import MESSAGES_MAX

log = logging.getLogger(__name__)

M = TypeVar("M")
T = TypeVar("T")
# A stream works so long at a stretch before others and requests have their turn.
TURN_S = 0.002
# What is taken out of the inbox at a time: what is not applied in this turn is put back.
TAKEN_BYTES_MAX = 65_536
TAKEN_ONE_BY_ONE_MAX = 8

# Read for every batch, and an enum's member costs as much to name as several look-ups.
_LIVE, _PARTIAL = Trust.LIVE, Trust.PARTIAL


class StreamProgress:
    """Everything that one stream's task changes, one batch after another.

    `epoch`: the connection that the state is about. `replayed_to`: the number of the last batch that a replay brought on it. `last_error`: the last
    thing that went wrong, None once it is over.
    """

    def __init__(self, key: StreamKey, applier: Applier, inbox: Inbox, store: Store, metrics: IndexerMetrics) -> None:
        self.key = key
        self.applier = applier
        self.inbox = inbox
        self.store = store
        self.metrics = metrics
        self.sequence = Sequence()
        self.state = TrustState()
        self.epoch = 0
        self.replayed_to = -1
        self.last_error: str | None = None
        self.is_replaced = False
        """Whether other streams are about to follow what this one did: it applies nothing any more."""
        self.batches = self.gaps = self.replayed = self.restarts = 0
        self.last_batch_s: float | None = None
        self.heard_s = time.monotonic()
        """When a batch was last applied, or a connection taken up."""
        self._told_trust = Trust.STALE
        self._lost_at: int | None = None
        self._is_whole_by_clear = False
        """Whether the content is complete since a clear, unless blocks lie below the gpu."""
        self._steps: Steps[None] | None = None
        self._dropping: Steps[None] | None = None
        self._takes_max = TAKEN_ONE_BY_ONE_MAX
        self._adapters_to_forget: list[str] = []
        self._adapters_before: frozenset[str] = frozenset()
        """Those of which a former owner of the stream may have recorded blocks: the records do not say which."""

    @property
    def log_names(self) -> dict[str, str | int]:
        """The fields that name the stream in the log."""
        return {"pod": self.key.pod, "rank": self.key.rank}

    def note(self, signal: Signal) -> None:
        """Something happened that says how far the content can be relied on."""
        self.state = self.state.after(signal)

    # Connections

    @property
    def is_current(self) -> bool:
        """Whether the connection that was taken up last is up, and the newest."""
        return self.inbox.connected and self.inbox.epoch == self.epoch

    def take_up(self, epoch: int, *, has_replay: bool) -> None:
        """A new connection: nothing is confirmed on it yet. `has_replay`: the engine has an endpoint for that."""
        self.epoch = epoch
        self.sequence.connected()
        self.replayed_to = -1
        if has_replay:
            self.note(Signal.CONNECTED_EMPTY if self.sequence.last is None else Signal.CONNECTED)
        else:
            self.note(Signal.CONNECTED_NO_REPLAY_EMPTY if self.sequence.last is None else Signal.CONNECTED_NO_REPLAY)
        self.heard_s = time.monotonic()

    def resume(self, head: Head) -> None:
        """Go on from where a former owner was."""
        self.sequence.resume(head.sequence, head.fingerprint)
        self.state = TrustState(Phase.UNVERIFIED, head.complete)
        self._adapters_before = frozenset(self.applier.state.adapters)
        self.applier.dialect.is_simulator = head.is_simulator

    # Batches

    def apply(self, number: int, payload: bytes, *, is_live: bool) -> None:
        """Apply one batch, readable or not: its number is done with either way. Where it takes long, it is applied by `go_on`."""
        if self._dropping is not None:
            self._steps, self._dropping = self._after(self._dropping, number, payload, is_live=is_live), None
            self.go_on(time.monotonic() + TURN_S)
            return
        applied = self.applier.start(payload, number, is_live=is_live)
        if type(applied) is Applied:
            self._note_applied(number, payload, applied, is_live=is_live)
        else:
            self._steps = self._in_steps(applied, number, payload, is_live=is_live)

    def _after(self, dropping: Steps[None], number: int, payload: bytes, *, is_live: bool) -> Steps[None]:
        yield from dropping
        applied = self.applier.start(payload, number, is_live=is_live)
        self._note_applied(number, payload, applied if type(applied) is Applied else (yield from applied), is_live=is_live)

    @property
    def is_amid_batch(self) -> bool:
        """Whether a batch is applied in part, or an adapter forgotten in part: nothing else may be applied before that is done."""
        return self._steps is not None

    def go_on(self, until_s: float) -> bool:
        """Apply more of a batch, until this time of the monotonic clock. Returns whether all of it is applied."""
        steps = self._steps
        while steps is not None:
            try:
                next(steps)
            except StopIteration:
                self._steps = steps = self._forget_in_steps(self._adapters_to_forget.pop(0)) if self._adapters_to_forget else None
            else:
                if time.monotonic() >= until_s:
                    return False
        return True

    async def finish_batch(self, turn: asyncio.Lock) -> None:
        """Apply the rest of a batch. Others, and requests, have their turn in between; until the end they see what was held before the batch."""
        while self.is_amid_batch:
            await asyncio.sleep(0)
            async with turn:
                self.go_on(time.monotonic() + TURN_S)

    async def apply_in_turns(self, messages: Iterable[M], apply: Callable[[M], T | None], turn: asyncio.Lock, replaced: T) -> T | None:
        """Apply one message after another until `apply` says how that ended. Others, and requests, have their turn in between.

        Returns what it said, None where all are applied, `replaced` where the stream is to be replaced. Raises what it raises.
        """
        waiting = deque(messages)
        outcome = None
        while waiting and outcome is None:
            async with turn:
                until_s = time.monotonic() + TURN_S
                try:
                    while self.go_on(until_s) and not self.is_replaced and waiting and outcome is None and time.monotonic() < until_s:
                        outcome = apply(waiting.popleft())
                finally:
                    self.applier.count_applied()
            await self.finish_batch(turn)
            if self.is_replaced:
                outcome = replaced
            await asyncio.sleep(0)
        return outcome

    def _in_steps(self, steps: Steps[Applied], number: int, payload: bytes, *, is_live: bool, count: int = 1) -> Steps[None]:
        self._note_applied(number, payload, (yield from steps), is_live=is_live, count=count)

    def _note_applied(self, number: int, payload: bytes, applied: Applied, *, is_live: bool, count: int = 1) -> None:
        """`count`: of the batches applied together, of which this is the last one."""
        if applied.is_refused_rank:
            self.is_replaced = True
            return
        if applied.change.cleared:
            self._note_cleared()
        elif self._is_whole_by_clear and self.applier.state.tiers:
            self.note(Signal.OFFLOADED)
        self.note_refused(applied.lossy)
        is_first = self.sequence.last is None
        self.sequence.applied(number, payload)
        if is_first and is_live and number == self.applier.first_number == 1:
            self.note(Signal.WHOLE)
        position = self._position() if self.store.needs_records else None
        self.store.append(self.key, self.applier.state.shape, applied.change, position)
        self.batches += count
        self.last_batch_s = self.heard_s = time.monotonic()

    def _note_cleared(self) -> None:
        """The gpu holds nothing else than what is known. What lies below it survives a first clear."""
        state = self.applier.state
        if not self.state.is_complete and (state.clears > 1 or not (state.tiers or state.table.offloads)):
            self.note(Signal.WHOLE)
            self._is_whole_by_clear = state.clears == 1

    def apply_live(self, number: int, payload: bytes) -> None:
        """Apply one live batch of the connection that was taken up."""
        if self.state.phase not in CONFIRMED_PHASES:
            self.note(Signal.LIVE_BATCH)
        self.sequence.note_live(number)
        self.apply(number, payload, is_live=True)

    def apply_waiting(self, apply: Callable[[list[bytes]], bool], until_s: float) -> bool:
        """Apply the oldest messages that came over the connection that was taken up: plain ones together, others one by one by `apply`.

        Returns whether it said that one has to wait, for a replay. A message for which it raises is done with.
        """
        messages = self.inbox.take_some(self.epoch, self._takes_max, TAKEN_BYTES_MAX)
        done = self._apply_together(messages)
        self._takes_max = MESSAGES_MAX if done else TAKEN_ONE_BY_ONE_MAX
        waits = False
        try:
            while done < len(messages) and self.go_on(until_s) and not self.is_replaced and not waits:
                done += 1
                waits = not apply(messages[done - 1])
                if time.monotonic() >= until_s:
                    break
        finally:
            if waits or done < len(messages):
                self.inbox.put_back(self.epoch, messages[done - waits :])
        return waits

    def _apply_together(self, messages: list[list[bytes]]) -> int:
        """Apply the first of these live messages as one batch, as many as simply go on where the stream is. Returns how many these are, 0 where they
        have to be looked at one by one."""
        sequence = self.sequence
        if len(messages) < 2 or sequence.last is None or self.state.phase not in CONFIRMED_PHASES or not sequence.goes_on_live:
            return 0
        started = self.applier.start_some(messages, sequence.last + 1)
        if started is None:
            return 0
        count, applied = started
        number, payload = sequence.last + count, messages[count - 1][2]
        sequence.note_live(number)
        if type(applied) is Applied:
            self._note_applied(number, payload, applied, is_live=True, count=count)
        else:
            self._steps = self._in_steps(applied, number, payload, is_live=True, count=count)
        return count

    def apply_replayed(self, number: int, payload: bytes) -> None:
        """Apply one batch that a replay brought."""
        self.apply(number, payload, is_live=False)
        self.replayed_to = number
        self.replayed += 1
        self.metrics.replayed.inc()

    # A snapshot

    def begin_snapshot(self, resume: int) -> None:
        """Hold nothing: what follows, up to `apply_snapshot`'s last, is all that the engine held when the next batch was `resume`."""
        self.forget()
        last = resume - 1 if resume else None
        self.sequence.resume(last, None)
        self.replayed_to = resume - 1
        self.note(Signal.WHOLE)

    def apply_snapshot(self, payload: bytes, keeps: Callable[[Event], bool] | None) -> None:
        """Apply one part of it. That its first event clears the cache says nothing that is not known. `keeps`: whether an event counts."""
        if keeps is not None:
            self._steps = self._snapshot_in_steps(self.applier.start_snapshot(payload, self.sequence.last or 0, keeps))
            return
        applied = self.applier.start(payload, self.sequence.last or 0, is_live=False)
        if type(applied) is Applied:
            self._note_snapshot(applied)
        else:
            self._steps = self._snapshot_in_steps(applied)

    def _snapshot_in_steps(self, steps: Steps[Applied]) -> Steps[None]:
        self._note_snapshot((yield from steps))

    def _note_snapshot(self, applied: Applied) -> None:
        if applied.is_refused_rank:
            self.is_replaced = True
            return
        self.note_refused(applied.lossy)
        self.store.append(self.key, self.applier.state.shape, applied.change, self._position() if self.store.needs_records else None)
        self.last_batch_s = self.heard_s = time.monotonic()

    def refuse(self, reason: str) -> None:
        """Count a message that could not be read."""
        self.note_refused(self.applier.refuse(reason))

    def note_refused(self, lossy: str | None) -> None:
        """`lossy`: the reason of a refusal after which something may be missing."""
        if lossy is not None:
            self.note(Signal.REFUSED)
            self.last_error = f"refused: {lossy}"

    # What is missing

    def note_gap(self) -> None:
        """Count a gap."""
        self.gaps += 1
        self.metrics.gaps.inc()

    def is_permanent_gap(self) -> bool:
        """Batches are missing before the next one. Returns whether they were asked for already; else they are to be asked for."""
        expected = self.sequence.expected
        if self._lost_at == expected and self.state.is_confirmed:
            return True
        if self._lost_at != expected:
            self.note_gap()
        self._lost_at = expected
        self.note(Signal.GAP)
        return False

    def lose_history(self, *, is_same_process: bool) -> None:
        """Missed batches cannot be replayed: some of what is held is gone at the engine, and it is unknown which. The index has none of it at once;
        `apply` does the rest before the batch that comes next."""
        if self.sequence.last is not None:
            self.metrics.losses.inc()
            log.warning("history lost", extra={**self.log_names, "sequence": self.sequence.last})
        self.note(Signal.HISTORY_LOST)
        if self.sequence.last is not None:
            self._adapters_before = frozenset()
            if is_same_process:
                self._dropping = self.applier.drop_held()
            else:
                self.applier.forget()
            self.store.drop(self.key, self.position)

    def restart(self) -> None:
        """Another process of the engine publishes now: nothing of the old one counts."""
        self.restarts += 1
        self.metrics.restarts.inc()
        log.info("engine restarted", extra={**self.log_names, "sequence": self.sequence.last})
        self.forget()

    def forget(self) -> None:
        """Hold nothing; nothing of what was applied counts any more."""
        self._steps = self._dropping = None
        self._adapters_to_forget.clear()
        self._adapters_before = frozenset()
        self.applier.forget()
        self.sequence.forget()
        self.note(Signal.FORGOTTEN)
        self._lost_at = None
        self._is_whole_by_clear = False
        self.store.drop(self.key, self.position)

    def forget_adapter(self, name: str) -> None:
        """Hold no block of this LoRA adapter any more: its weights are others now. Where it takes long, or a batch is applied in part, `go_on` does
        it. Where a former owner recorded blocks of it nothing is held: they cannot be told from others."""
        if self.is_amid_batch:
            self._adapters_to_forget.append(name)
            return
        self._steps = self._forget_in_steps(name)
        self.go_on(time.monotonic() + TURN_S)

    def _forget_in_steps(self, name: str) -> Steps[None]:
        if name in self._adapters_before:
            self._adapters_before = frozenset()
            self.note(Signal.HISTORY_LOST)
            self.store.drop(self.key, self.position)
            yield from self.applier.drop_held()
            return
        change = yield from self.applier.forget_adapter(name)
        change.sequence = self.sequence.last
        self.store.append(self.key, self.applier.state.shape, change, self.position if self.store.needs_records else None)
        self.applier.count_applied()

    def expire(self) -> None:
        """The engine stayed away: drop everything."""
        self.forget()
        self.note(Signal.EXPIRED)

    def fail(self) -> None:
        """After an error of ours: hold nothing, and begin again."""
        self.forget()
        self.note(Signal.FAILED)
        self.last_error = "an internal error, see the log"

    # Its status

    @property
    def trust(self) -> Trust:
        """How far the content can be relied on now."""
        return self._trust()

    def _trust(self) -> Trust:
        inbox = self.inbox
        trust = self.state.trust(is_current=inbox.connected and inbox.epoch == self.epoch)
        return _PARTIAL if trust is _LIVE and self.applier.state.undecided else trust

    def publish_trust(self) -> None:
        """Report a changed trust to the store."""
        trust = self.trust
        if trust is self._told_trust:
            return
        was, error = str(self._told_trust), self.last_error or self.inbox.error
        log.info("stream changed", extra={**self.log_names, "trust": str(trust), "was": was, "sequence": self.sequence.last, "error": error})
        self._told_trust = trust
        self.store.set_trust(self.key, trust, self.position)

    @property
    def position(self) -> StreamPosition:
        """The stream's position between two batches."""
        return self._position()

    def _position(self) -> StreamPosition:
        """Asked for with each batch: a property costs twice as much as a method."""
        sequence, state = self.sequence, self.state
        return StreamPosition(sequence.last, sequence.fingerprint, state.is_complete, self._trust(), self.applier.dialect.is_simulator)
