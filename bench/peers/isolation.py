"""Where both sides run: a network of their own with loopback only, since the peer listens on all interfaces, on a machine that does nothing else."""

import fcntl
import os
import socket
import struct
import sys
import time
from pathlib import Path

MARK = "KV_INDEXER_BENCH_ISOLATED"
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
BUSY_SHARE_MAX = 0.1
BUSY_LOOK_S = 2.0


def enter() -> None:
    """Run this command again in a network namespace, once. Raises OSError where the system does not allow that."""
    if os.environ.get(MARK):
        _raise_loopback()
        return
    os.environ[MARK] = "1"
    command = ["unshare", "--net", "--map-root-user", sys.executable, "-m", "bench.peers", *sys.argv[1:]]
    os.execvp(command[0], command)  # noqa: S606 - our own command again


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = fcntl.ioctl(handle, SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
        (flags,) = struct.unpack_from("h", request, 16)
        fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def busy_share() -> float:
    """How much of all cores others use now, those of other guests of the host among them."""
    before = _jiffies()
    time.sleep(BUSY_LOOK_S)
    total, idle = (after - earlier for after, earlier in zip(_jiffies(), before, strict=True))
    return 1 - idle / total


def _jiffies() -> tuple[int, int]:
    fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(fields), fields[3] + fields[4]
