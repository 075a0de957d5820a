"""The parent of the workers: it starts them, starts those again that die, ends those that hang, and passes signals on.

It runs neither event loop nor thread: it forks.
"""

import gc
import logging
import math
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import closing

from msgspec import Struct

from indexer.workers.board import WorkerState
from indexer.workers.worker import Worker, WorkerGroup

log = logging.getLogger(__name__)

# A worker that dies is started again at once. Where the next one dies so soon after its start, there is a pause, which doubles each time.
SHORT_LIFE_S = 60.0
PAUSE_MIN_S, PAUSE_MAX_S = 1.0, 30.0
STOPPING = (signal.SIGTERM, signal.SIGINT)
POLL_S = 0.01
# So often it looks whether the workers' event loops turn. One that stood still for HANG_S is ended, and one that has not begun after START_S.
WATCH_S = 1.0
HANG_S = 10.0
START_S = 300.0


class _Place(Struct):
    """One number. `pid`: of the worker that runs, None if none does. `due_s`: when the next one is to be started. `short_lives`: deaths in a row,
    each soon after a start. `beats`: what the worker showed last; `still_s`: for how long it has been that."""

    number: int
    pid: int | None = None
    started_s: float = 0.0
    due_s: float = 0.0
    short_lives: int = 0
    beats: int = 0
    still_s: float = 0.0


class Supervisor:
    """`run` returns in the parent and in each worker: the exit code of the process that it returns in.

    `work`: runs a worker to its end and returns its exit code. `passes_on`: the signals, besides those that stop the service, that all workers get.
    `check`: called every second, and at once where a process has ended, until the service stops.
    """

    def __init__(
        self,
        group: WorkerGroup,
        work: Callable[[Worker], int],
        passes_on: tuple[signal.Signals, ...] = (),
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self._check = check
        self._group = group
        self._work = work
        self._passes_on = passes_on
        self._places = [_Place(number) for number in range(group.count)]
        self._is_stopping = False
        self._is_first_listening = False
        self._code = 0
        self._watched_s = time.monotonic()
        self._handled = {*STOPPING, *passes_on, signal.SIGCHLD}

    def run(self) -> int:
        """The first worker goes ahead: where it cannot start, the service ends with its exit code, and what is wrong was told once."""
        gc.collect()
        gc.freeze()  # the modules' memory stays shared
        reading, writing = socket.socketpair()
        with closing(reading), closing(writing):
            for end in (reading, writing):
                end.setblocking(False)
            before = signal.set_wakeup_fd(writing.fileno())
            handlers = {number: signal.signal(number, _do_nothing) for number in self._handled}
            try:
                return self._supervise(reading)
            finally:
                signal.set_wakeup_fd(before)
                for number, handler in handlers.items():
                    signal.signal(number, handler)

    def _supervise(self, signals: socket.socket) -> int:
        first = self._places[0]
        if (worker := self._start(first)) is not None:
            return self._work(worker)
        while first.pid is not None and self._group.board.state(first.number) is WorkerState.DOWN:
            self._wait(signals, POLL_S)
            self._watch()
            if not self._is_stopping:
                self._check()
        if first.pid is None:
            return self._code
        self._is_first_listening = True
        while not self._is_stopping:
            missing = [place for place in self._places if place.pid is None]
            for place in missing:
                if place.due_s <= time.monotonic() and (worker := self._start(place)) is not None:
                    return self._work(worker)
            due_s = min((place.due_s for place in missing if place.pid is None), default=math.inf)
            self._wait(signals, min(WATCH_S, max(0.0, due_s - time.monotonic())))
            self._watch()
            if not self._is_stopping:
                self._check()
        while any(place.pid is not None for place in self._places):
            self._wait(signals, WATCH_S)
            self._watch()
        return self._code

    def _watch(self) -> None:
        """End the workers whose event loops stand still: a process that hangs or was stopped answers nobody, and does not end by itself."""
        now_s = time.monotonic()
        # Where this process stood still itself, as on a machine that was suspended, the others did, too.
        passed_s = min(now_s - self._watched_s, 2 * WATCH_S)
        self._watched_s = now_s
        for place in self._places:
            if place.pid is None:
                continue
            beats = self._group.board.beats(place.number)
            if beats != place.beats:
                place.beats, place.still_s = beats, 0.0
                continue
            place.still_s += passed_s
            if place.still_s > (HANG_S if beats else START_S):
                self._group.board.count_hang(place.number)
                log.error("worker hangs", extra={"worker": place.number, "pid": place.pid, "still_s": round(place.still_s, 1)})
                place.still_s = 0.0
                os.kill(place.pid, signal.SIGKILL)

    def _start(self, place: _Place) -> Worker | None:
        """Fork. Returns the worker, in the worker."""
        is_restarted = place.started_s > 0
        if is_restarted:
            self._group.board.count_restart(place.number)
        self._group.board.forget_beats(place.number)
        place.beats, place.still_s = 0, 0.0
        # No signal may reach the worker while the parent's handlers would take it.
        signal.pthread_sigmask(signal.SIG_BLOCK, self._handled)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in self._handled:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._handled)
            self._group.leave_to_parent()
            return Worker(place.number, self._group, is_restarted=is_restarted)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._handled)
        place.pid, place.started_s = pid, time.monotonic()
        log.info("worker started", extra={"worker": place.number, "pid": pid})
        return None

    def _wait(self, signals: socket.socket, timeout_s: float) -> None:
        """Wait for a signal, and act on all that came."""
        select.select([signals], [], [], timeout_s)
        try:
            came = set(signals.recv(4_096))
        except BlockingIOError:
            return
        if came & set(STOPPING):
            self._stop()
        for number in self._passes_on:
            if number in came:
                self._send(number)
        self._reap()

    def _stop(self) -> None:
        """Workers answer what has arrived, and end. What the parent still held open would take connections that nobody accepts."""
        self._is_stopping = True
        self._group.listener.close()
        self._send(signal.SIGTERM)

    def _send(self, number: int) -> None:
        for place in self._places:
            if place.pid is not None:
                os.kill(place.pid, number)

    def _reap(self) -> None:
        for place in self._places:
            if place.pid is None:
                continue
            pid, status = os.waitpid(place.pid, os.WNOHANG)
            if pid:
                self._note_end(place, os.waitstatus_to_exitcode(status))

    def _note_end(self, place: _Place, code: int) -> None:
        self._group.board.set_state(place.number, WorkerState.DOWN)
        pid, place.pid = place.pid, None
        if self._is_stopping or not self._is_first_listening:
            # Before it handles signals, SIGTERM ends it, too.
            has_failed = code != 0 and not (self._is_stopping and code == -signal.SIGTERM)
            self._code = self._code or (max(1, code) if has_failed else 0)
            return
        now_s = time.monotonic()
        place.short_lives = place.short_lives + 1 if now_s - place.started_s < SHORT_LIFE_S else 0
        pause_s = min(PAUSE_MAX_S, PAUSE_MIN_S * 2 ** (place.short_lives - 2)) if place.short_lives > 1 else 0.0
        place.due_s = now_s + pause_s
        log.error("worker died", extra={"worker": place.number, "pid": pid, "exit_code": code, "restart_in_s": pause_s})


def _do_nothing(number: int, frame: object) -> None:
    """What came is read from the wake-up socket."""
