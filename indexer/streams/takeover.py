"""Takeover without replay: the frames that were kept meanwhile show whether the same process goes on after the former owner's last batch."""

import logging
import math
import time
from contextlib import suppress

from indexer.core.sequence import Overlap, match_kept
from indexer.errors import Refused
from indexer.streams.progress import StreamProgress
from indexer.streams.trust import Signal
from indexer.wire.frames import split_frames

log = logging.getLogger(__name__)

# The recorded batch may still be on its way to us; after so long it is not.
RECORDED_BATCH_WAIT_S = 0.25


class Takeover:
    """Looks for the recorded batch among the kept frames. `is_pending`: it is not decided yet, and nothing must be taken out of the inbox."""

    def __init__(self, progress: StreamProgress) -> None:
        self._progress = progress
        self._until_s: float | None = None

    @property
    def is_pending(self) -> bool:
        return self._until_s is not None

    def begin(self) -> None:
        """The stream was resumed from a record."""
        self._until_s = math.inf

    def end(self) -> None:
        """There is no record to go on from any more."""
        self._until_s = None

    def join(self) -> float:
        """Decide by what was kept, if it can be decided. Returns how long to wait for more."""
        progress = self._progress
        readable = []
        for epoch, frames in progress.inbox.kept():
            with suppress(Refused):
                readable.append((epoch, frames, split_frames(frames)))
        if not readable:
            self._until_s = None
            return 0.0
        found = match_kept(progress.sequence, [numbered for _, _, numbered in readable])
        if found.overlap is Overlap.BEFORE and (left_s := self._left_s()) > 0:
            return left_s
        self._until_s = None
        state, number = progress.state, progress.sequence.last
        if found.overlap in (Overlap.RESTARTED, Overlap.BEFORE):
            progress.restart()
        if found.done:
            epoch, frames, _ = readable[found.done - 1]
            progress.inbox.pass_over(frames)
            progress.take_up(epoch, has_replay=False)
        if found.overlap is Overlap.FOUND and number is not None:
            progress.sequence.note_live(number)
            progress.note(Signal.FOUND)
            if state.is_complete:
                progress.note(Signal.WHOLE)
        log.info("stream joined", extra={**progress.log_names, "sequence": number, "overlap": found.overlap.name.lower()})
        return 0.0

    def _left_s(self) -> float:
        now_s = time.monotonic()
        assert self._until_s is not None, "only a stream that was taken over is joined"
        self._until_s = min(self._until_s, now_s + RECORDED_BATCH_WAIT_S)
        return self._until_s - now_s
