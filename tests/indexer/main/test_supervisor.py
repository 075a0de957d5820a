"""The parent of workers, with workers that do nothing but wait or end. It runs in a forked process, as it forks itself."""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

import pytest

from indexer.main import supervisor as module
from indexer.main.supervisor import Supervisor
from indexer.workers.worker import Worker, WorkerGroup
from tests.slowness import slowness
from tests.waiting import wait_until


def run_forked(act: Callable[[], int]) -> int:
    """The exit code of a process that does this."""
    pid = os.fork()
    if not pid:
        code = 99
        try:
            code = act()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_for_sigterm(code: int) -> int:
    """A worker's work: it is there until it is told to end."""
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(code))
    signal.pause()
    return code


def test_a_first_worker_that_cannot_start_ends_the_service_with_its_exit_code() -> None:
    def act() -> int:
        with socket.socket() as listener:
            return Supervisor(WorkerGroup(3, listener), lambda worker: 2 if worker.number == 0 else os._exit(98)).run()

    assert run_forked(act) == 2


@pytest.mark.parametrize(("codes", "expected"), [((0, 0, 0), 0), ((0, 3, 0), 3)])
def test_sigterm_ends_all_and_the_exit_code_says_whether_in_order(codes: tuple[int, ...], expected: int) -> None:
    def act() -> int:
        parent = os.getpid()

        def work(worker: Worker) -> int:
            worker.note_starting()
            if worker.number == len(codes) - 1:
                os.kill(parent, signal.SIGTERM)
            return wait_for_sigterm(codes[worker.number])

        with socket.socket() as listener:
            return Supervisor(WorkerGroup(len(codes), listener), work).run()

    assert run_forked(act) == expected


def test_a_worker_that_dies_is_started_again_at_once_and_then_after_pauses_that_double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_MIN_S", 0.01)
    monkeypatch.setattr(module, "PAUSE_MAX_S", 0.02)
    reading, writing = os.pipe()

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "worker died":
                os.write(writing, f"{record.restart_in_s} ".encode())  # type: ignore[attr-defined]  # a field of the log line

    def act() -> int:
        parent = os.getpid()
        module.log.addHandler(Note())

        def work(worker: Worker) -> int:
            worker.note_starting()
            if worker.number == 0:
                return wait_for_sigterm(0)
            if worker.group.board.restarts(1) == 4:
                assert worker.is_restarted
                os.kill(parent, signal.SIGTERM)
                return wait_for_sigterm(0)
            os.kill(os.getpid(), signal.SIGKILL)
            return 1

        with socket.socket() as listener:
            return Supervisor(WorkerGroup(2, listener), work).run()

    code = run_forked(act)
    os.close(writing)
    with os.fdopen(reading) as pauses:
        assert (code, pauses.read().split()) == (0, ["0.0", "0.01", "0.02", "0.02"])


def beat_until_sigterm(worker: Worker) -> int:
    """A worker's work: its event loop turns until it is told to end."""
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    worker.note_starting()
    while not ended:
        worker.group.board.beat(worker.number)
        time.sleep(0.01)
    return 0


def quick_to_notice(monkeypatch: pytest.MonkeyPatch) -> float:
    """Returns for how long a worker may stand still."""
    hang_s = 0.25 * slowness()
    monkeypatch.setattr(module, "WATCH_S", 0.05)
    monkeypatch.setattr(module, "HANG_S", hang_s)
    return hang_s


def test_a_worker_whose_loop_stands_still_is_ended_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_to_notice(monkeypatch)

    def act() -> int:
        parent = os.getpid()

        def work(worker: Worker) -> int:
            board = worker.group.board
            if worker.number == 1 and board.restarts(1) == 0:
                worker.note_starting()
                board.beat(1)
                os.kill(os.getpid(), signal.SIGSTOP)
            if worker.number == 1:
                assert (board.hangs(0), board.hangs(1), board.restarts(0)) == (0, 1, 0)
                os.kill(parent, signal.SIGTERM)
            return beat_until_sigterm(worker)

        with socket.socket() as listener:
            return Supervisor(WorkerGroup(2, listener), work).run()

    assert run_forked(act) == 0


def test_sigterm_ends_a_worker_that_hangs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_to_notice(monkeypatch)

    def act() -> int:
        parent = os.getpid()

        def work(worker: Worker) -> int:
            worker.note_starting()
            if worker.number == 0:
                return beat_until_sigterm(worker)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the parent's may come before it is stopped
            worker.group.board.beat(1)
            os.kill(parent, signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGSTOP)
            return 0

        with socket.socket() as listener:
            return Supervisor(WorkerGroup(2, listener), work).run()

    assert run_forked(act) == 1, "that one of them did not end in order is not hidden"


def test_workers_survive_that_all_stand_still_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that is suspended: parent and workers are stopped for longer than a worker may hang."""
    hang_s = quick_to_notice(monkeypatch)
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:

        def work(worker: Worker) -> int:
            os.write(writing, f"{os.getpid()} ".encode())
            return beat_until_sigterm(worker)

        with socket.socket() as listener:
            group = WorkerGroup(2, listener)
            code = Supervisor(group, work).run()
            os._exit(code + 10 * sum(group.board.hangs(number) for number in range(2)))
    os.close(writing)
    seen = b""
    while seen.count(b" ") < 2:
        seen += os.read(reading, 64)
    workers = [int(number) for number in seen.split()]
    for each in (pid, *workers):
        os.kill(each, signal.SIGSTOP)
    time.sleep(1.2 * hang_s)
    os.kill(pid, signal.SIGCONT)  # it looks before the others go on
    time.sleep(0.1)
    for each in workers:
        os.kill(each, signal.SIGCONT)
    time.sleep(0.1)
    os.kill(pid, signal.SIGTERM)
    os.close(reading)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_other_signals_reach_every_worker_and_none_survives_the_parent() -> None:
    reading, writing = os.pipe()

    def work(worker: Worker) -> int:
        signal.signal(signal.SIGHUP, lambda number, frame: os.write(writing, b"h") and None)
        worker.note_starting()
        os.write(writing, b"s")
        os.read(worker.group.alive, 1)  # ends with the parent
        os.write(writing, b"e")
        return 0

    pid = os.fork()
    if not pid:
        with socket.socket() as listener:
            os._exit(Supervisor(WorkerGroup(2, listener), work, (signal.SIGHUP,)).run())
    os.close(writing)
    seen: list[bytes] = []

    def read() -> None:
        while piece := os.read(reading, 16):
            seen.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: b"".join(seen) == b"ss")
    os.kill(pid, signal.SIGHUP)
    wait_until(lambda: b"".join(seen) == b"sshh")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_until(lambda: b"".join(seen) == b"sshhee")
    reader.join(10)
    os.close(reading)
