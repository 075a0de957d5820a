"""How this process allocates its memory."""

import ctypes
from contextlib import suppress

M_ARENA_MAX = -8  # malloc.h


def share_one_arena() -> None:
    """Have all threads allocate from one arena, where the C library is glibc; call it before there are any.

    The receiving thread allocates what a stream's task frees: with an arena of its own it grows and shrinks that by a system call for
    nearly every frame, and what it once needed stays unused.
    """
    with suppress(OSError, AttributeError):  # no C library to be found by that name, or another one
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
