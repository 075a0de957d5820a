"""One arena for all threads, as glibc itself tells."""

import platform
import subprocess
import sys

import pytest

ALLOCATE_IN_A_THREAD = """
import ctypes, threading
from indexer.main.allocation import share_one_arena
{call}
thread = threading.Thread(target=lambda: [bytes(10_000) for _ in range(100)])
thread.start()
thread.join()
ctypes.CDLL(None).malloc_stats()
"""


def arenas(call: str) -> int:
    """How many arenas a process has whose thread has allocated something; it tells on standard error."""
    command = [sys.executable, "-c", ALLOCATE_IN_A_THREAD.format(call=call)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stderr.count("Arena ")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no arenas")
def test_all_threads_share_one_arena() -> None:
    assert arenas("") == 2
    assert arenas("share_one_arena()") == 1


FREE_BETWEEN_SMALL_ONES = """
from indexer.main.allocation import give_large_blocks_back
{call}
def memory():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) // 1024
first = bytes(30 * 2**20)  # glibc learns from it that such blocks belong on the heap
del first
before, kept = memory(), []
for _ in range(20):
    large = b"x" * (8 * 2**20)
    kept.append((large, bytearray(600)))
kept = [small for _, small in kept]
del large
print(memory() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such thresholds")
def test_large_blocks_go_back_to_the_system_where_small_ones_lie_behind_them() -> None:
    def held_mib(call: str) -> int:
        return int(subprocess.run([sys.executable, "-c", FREE_BETWEEN_SMALL_ONES.format(call=call)], check=True, capture_output=True).stdout)

    assert held_mib("") > 100
    assert held_mib("give_large_blocks_back()") < 20
