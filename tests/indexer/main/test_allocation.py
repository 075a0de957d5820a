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
