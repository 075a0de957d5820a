"""The state of each worker, in memory that the parent and all workers share."""

import mmap
import struct
from enum import IntEnum

# State, restarts, open connections.
_RECORD = struct.Struct("<III")
_STATE, _RESTARTS, _CONNECTIONS = range(3)


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
    """Per worker: its state, how many times one with this number was started again, its open connections. Make it before the first fork."""

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

    def others(self, number: int) -> dict[int, WorkerState]:
        """The states of all but this one."""
        return {other: self.state(other) for other in range(self.count) if other != number}

    def _record(self, number: int) -> tuple[int, ...]:
        return _RECORD.unpack_from(self._memory, number * _RECORD.size)

    def _write(self, number: int, field: int, value: int) -> None:
        struct.pack_into("<I", self._memory, number * _RECORD.size + 4 * field, value)
