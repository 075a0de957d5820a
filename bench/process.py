"""What the system says of a process that is measured, and its end."""

import os
import signal
import subprocess
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
STOP_TIMEOUT_S = 15.0


def cpu_s(pid: int) -> float:
    """The CPU time of all its threads so far, user and system."""
    return sum(_ticks(pid)) / TICKS_PER_S


def kernel_s(pid: int) -> float:
    """The system's part of it."""
    return _ticks(pid)[1] / TICKS_PER_S


def _ticks(pid: int) -> tuple[int, int]:
    """User and system."""
    # Behind the command's name, which may hold anything, in brackets; utime and stime are fields 14 and 15.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]), int(fields[12])


def cpu_ns(pid: int) -> int:
    """The same as `cpu_s`, by the nanosecond, of the threads that there are now."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def children(pid: int) -> list[int]:
    """Its child processes."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def rss_bytes(pid: int) -> int:
    """Its resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End it by itself, or else by force."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
