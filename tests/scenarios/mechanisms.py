"""Every recovery mechanism, and how to switch it off: the tests that are marked with it must then fail (`make test-mechanisms`)."""

import math
import threading
from collections.abc import Callable

import pytest

from indexer.core.sequence import ReplayProgress, Sequence, Step, Verdict
from indexer.core.stream_state import StreamState
from indexer.core.waiting_blocks import WaitingBlocks
from indexer.limits import ReceiveLimits
from indexer.receiving import subscriber
from indexer.receiving.connection import Connection
from indexer.receiving.inbox import Inbox
from indexer.streams import recovery, stream
from indexer.streams.progress import StreamProgress
from indexer.streams.recovery import Recovery, ReplayOutcome
from indexer.streams.snapshots import SnapshotOutcome, Snapshots
from indexer.streams.stream import Stream
from indexer.streams.trust import Phase, Signal, TrustState
from indexer.wire.frames import split_reply
from indexer.wire.snapshots import SnapshotBatch, SnapshotReading

Patch = pytest.MonkeyPatch


def no_replay_of_gaps(patch: Patch) -> None:
    """A gap is stepped over as if nothing were missing."""
    judge = Sequence.judge
    patch.setattr(Sequence, "judge", lambda self, number: Verdict.NEXT if judge(self, number) is Verdict.GAP else judge(self, number))


def no_first_replay(patch: Patch) -> None:
    """What was published before the service came is not asked for."""
    replay = Recovery.replay

    async def skip(self: Recovery, *, is_probe: bool = False) -> ReplayOutcome:
        return ReplayOutcome.ENDED if self._progress.sequence.last is None else await replay(self, is_probe=is_probe)

    patch.setattr(Recovery, "replay", skip)


def no_snapshots(patch: Patch) -> None:
    """What an engine holds is not asked for."""
    patch.setattr(Snapshots, "is_due", False)


def no_replay_after_snapshots(patch: Patch) -> None:
    """What was published since a snapshot is not asked for."""
    replay = Recovery.replay

    async def skip(self: Recovery, *, is_probe: bool = False) -> ReplayOutcome:
        sequence = self._progress.sequence
        is_after = sequence.last is not None and sequence.fingerprint is None
        return ReplayOutcome.ENDED if is_after else await replay(self, is_probe=is_probe)

    patch.setattr(Recovery, "replay", skip)


def no_end_of_snapshots(patch: Patch) -> None:
    """A snapshot that breaks off counts as whole."""
    apply = Snapshots._apply

    def end(self: Snapshots, reading: SnapshotReading, part: SnapshotBatch | None) -> SnapshotOutcome:
        return apply(self, reading, part) or SnapshotOutcome.LOADED

    patch.setattr(Snapshots, "_apply", end)


def no_contiguity_check(patch: Patch) -> None:
    """Replies are applied as they come."""
    patch.setattr(ReplayProgress, "reply", lambda self, number, payload: Step.SKIP if number < self.start else Step.APPLY)


def no_asking_again(patch: Patch) -> None:
    """A reply that breaks off counts as whole."""
    _outcome_instead(patch, {ReplayOutcome.CUT, ReplayOutcome.HOLE, ReplayOutcome.UNANSWERED})


def no_permanent_holes(patch: Patch) -> None:
    """A hole is asked for again for ever."""

    def never(self: StreamProgress) -> bool:
        self.note(Signal.GAP)
        return False

    patch.setattr(StreamProgress, "is_permanent_gap", never)


def one_reply_shape(patch: Patch) -> None:
    """Replies are read from the front, in the shape with a topic only."""
    patch.setattr(recovery, "split_reply", lambda frames: split_reply(frames) if len(frames) == 4 else (0, b""))


def no_patience(patch: Patch) -> None:
    """An unanswered replay counts as answered."""
    _outcome_instead(patch, {ReplayOutcome.UNANSWERED})


def no_purge_of_lost_history(patch: Patch) -> None:
    """A history that starts late is taken for a whole one."""
    patch.setattr(StreamProgress, "lose_history", lambda self, *, is_same_process: None)


def no_probe_of_silence(patch: Patch) -> None:
    """Nobody asks whether a last batch was lost."""

    async def listen(self: Stream) -> float:
        return math.inf

    patch.setattr(Stream, "_listen", listen)


def no_fingerprint(patch: Patch) -> None:
    """Whatever answers after a reconnect passes for the same life."""
    patch.setattr(Sequence, "is_same", lambda self, payload: True)
    patch.setattr(ReplayProgress, "ended", lambda self: Step.SKIP)


def no_regress(patch: Patch) -> None:
    """A number that was heard before is taken for a repetition."""
    judge = Sequence.judge
    verdicts = {Verdict.RESTART: Verdict.DUPLICATE}
    patch.setattr(Sequence, "judge", lambda self, number: verdicts.get(found := judge(self, number), found))
    patch.setattr(Stream, "_can_ask", True)


def no_doubt_of_reconnects(patch: Patch) -> None:
    """A reconnect without a replay endpoint changes nothing."""
    take_up = StreamProgress.take_up

    def keep(self: StreamProgress, epoch: int, *, has_replay: bool) -> None:
        is_complete = self.state.is_complete
        take_up(self, epoch, has_replay=has_replay)
        self.state = TrustState(Phase.CONFIRMED if has_replay else Phase.NO_REPLAY, is_complete)

    patch.setattr(StreamProgress, "take_up", keep)


def no_parking(patch: Patch) -> None:
    """Blocks whose parent is unknown are dropped."""
    patch.setattr(WaitingBlocks, "park", lambda self, event, slot, now_s: None)


def no_expiry(patch: Patch) -> None:
    """A pod that went away is kept for ever."""
    patch.setattr(Stream, "_expire_if_away", lambda self: math.inf)


def silence_is_death(patch: Patch) -> None:
    """A pod that says nothing for `pod_expiry_s` is dropped, connected or not."""
    listen = Stream._listen

    async def expire(self: Stream) -> float:
        if stream.time.monotonic() - (self._progress.last_batch_s or 0) > self._settings.pod_expiry_s:
            self._progress.expire()
        return min(0.1, await listen(self))

    patch.setattr(Stream, "_listen", expire)


def no_heartbeats(patch: Patch) -> None:
    """A peer that says nothing, not even to TCP, passes for connected."""
    patch.setattr(Connection, "_beat", lambda self: None)


def no_forgetting(patch: Patch) -> None:
    """What was held stays, whatever shows that it is void."""
    no_purge_of_lost_history(patch)
    patch.setattr(StreamProgress, "restart", lambda self: None)


def every_reconnect_is_a_restart(patch: Patch) -> None:
    """The fingerprint never fits."""
    patch.setattr(Sequence, "is_same", lambda self, payload: False)


def no_clearing(patch: Patch) -> None:
    """A clear is passed over."""
    patch.setattr(StreamState, "_clear", lambda self: None)


def no_giving_up(patch: Patch) -> None:
    """A replay is waited for without end."""
    patch.setattr(Recovery, "give_up", lambda self: None)


def no_room(patch: Patch) -> None:
    """Next to nothing is kept while a replay runs."""
    put = Inbox.put

    def put_in_little_room(self: Inbox, frames: list[bytes]) -> None:
        self._limits = ReceiveLimits(inbox_frames_max=10)
        put(self, frames)

    patch.setattr(Inbox, "put", put_in_little_room)


def receiving_waits(patch: Patch) -> None:
    """The receiving thread waits for the event loop."""
    turn = subscriber.Subscriber._turn

    def wait_for_loop(self: subscriber.Subscriber) -> None:
        passed = threading.Event()
        self._loop.call_soon_threadsafe(passed.set)
        while not self._stopping and not passed.wait(0.05):
            pass
        turn(self)

    patch.setattr(subscriber.Subscriber, "_turn", wait_for_loop)


def _outcome_instead(patch: Patch, outcomes: set[ReplayOutcome]) -> None:
    replay = Recovery.replay

    async def ended(self: Recovery, *, is_probe: bool = False) -> ReplayOutcome:
        outcome = await replay(self, is_probe=is_probe)
        return ReplayOutcome.ENDED if outcome in outcomes else outcome

    patch.setattr(Recovery, "replay", ended)


MECHANISMS: dict[str, Callable[[Patch], None]] = {
    switch_off.__name__: switch_off
    for switch_off in (
        no_replay_of_gaps,
        no_first_replay,
        no_snapshots,
        no_replay_after_snapshots,
        no_end_of_snapshots,
        no_contiguity_check,
        no_asking_again,
        no_permanent_holes,
        one_reply_shape,
        no_patience,
        no_purge_of_lost_history,
        no_probe_of_silence,
        no_fingerprint,
        no_regress,
        no_doubt_of_reconnects,
        no_parking,
        no_expiry,
        silence_is_death,
        no_heartbeats,
        receiving_waits,
        no_forgetting,
        every_reconnect_is_a_restart,
        no_clearing,
        no_giving_up,
        no_room,
    )
}
