"""The state of each worker, in memory that the parent and all workers share."""

import mmap
import struct
from enum import IntEnum

# State, restarts, open connections, beats, hangs.
_RECORD = struct.Struct("<IIIII")
_STATE, _RESTARTS, _CONNECTIONS, _BEATS, _HANGS = range(5)

BEATS_MAX = 2**32 - 1


class WorkerState(IntEnum):
    """What a worker does. Only the parent writes DOWN, and it does so before the next one with the same number starts."""

    DOWN = 0
    """It is not running."""
    STARTING = 1
    """It accepts requests, and has not loaded everything that there was at its start."""
    LOADING = 2
    """It takes the place of one that died: it accepts requests once it has loaded everything."""
    READY = 3


class WorkerBoard:
    """Per worker: its state, how many times one with this number was started again, its open connections, how often its event loop has shown that it
    turns, and how many times one was ended since it did not. Make it before the first fork."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._memory = mmap.mmap(-1, count * _RECORD.size)

    def state(self, number: int) -> WorkerState:
        return WorkerState(self._record(number)[_STATE])

    def set_state(self, number: int, state: WorkerState) -> None:
        self._write(number, _STATE, state)

    def restarts(self, number: int) -> int:
        return self._record(number)[_RESTARTS]

    def count_restart(self, number: int) -> None:
        self._write(number, _RESTARTS, self.restarts(number) + 1)

    def connections(self, number: int) -> int:
        return self._record(number)[_CONNECTIONS]

    def set_connections(self, number: int, count: int) -> None:
        self._write(number, _CONNECTIONS, count)

    def beats(self, number: int) -> int:
        """0 as long as the worker that runs now has shown nothing."""
        return self._record(number)[_BEATS]

    def beat(self, number: int) -> None:
        self._write(number, _BEATS, self.beats(number) % BEATS_MAX + 1)

    def forget_beats(self, number: int) -> None:
        """Another worker begins."""
        self._write(number, _BEATS, 0)

    def hangs(self, number: int) -> int:
        return self._record(number)[_HANGS]

    def count_hang(self, number: int) -> None:
        self._write(number, _HANGS, self.hangs(number) + 1)

    def others(self, number: int) -> dict[int, WorkerState]:
        """The states of all but this one."""
        return {other: self.state(other) for other in range(self.count) if other != number}

    def _record(self, number: int) -> tuple[int, ...]:
        return _RECORD.unpack_from(self._memory, number * _RECORD.size)

    def _write(self, number: int, field: int, value: int) -> None:
        struct.pack_into("<I", self._memory, number * _RECORD.size + 4 * field, value)
