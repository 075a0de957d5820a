"""How this process allocates its memory."""

import ctypes
from contextlib import suppress

# malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
# Bodies and the like are given back as soon as they are freed. Otherwise glibc raises its threshold to the largest block it has seen, and what lies
# behind a small block that is still in use stays with the process.
GIVEN_BACK_BYTES = 2**20
# So much may be free at the end of the heap. glibc's own 128 KiB would be given back and taken again all the time.
SPARE_BYTES = 16 * 2**20


def share_one_arena() -> None:
    """Make all threads allocate from one arena if the C library is glibc. Call it before threads are started.

    The receiving thread allocates what a stream's task frees: with its own arena it grows and shrinks that by a system call for
    nearly every frame, and memory that it once needed stays unused.
    """
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def give_large_blocks_back() -> None:
    """Let memory of large blocks go back to the system when they are freed, if the C library is glibc."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, GIVEN_BACK_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, SPARE_BYTES)
