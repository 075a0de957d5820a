"""How this process allocates its memory."""

import ctypes
from contextlib import suppress

M_ARENA_MAX = -8  # malloc.h


def share_one_arena() -> None:
    """Make all threads allocate from one arena if the C library is glibc. Call it before threads are started.

    The receiving thread allocates what a stream's task frees: with its own arena it grows and shrinks that by a system call for
    nearly every frame, and memory that it once needed stays unused.
    """
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
