"""What the C allocator keeps of memory that was freed: little, where it is glibc's.

By default it gives every thread a heap of its own, raises the size from which a block is mapped by itself up
to 32 MB, and returns the end of a heap only. A server whose pictures are made and encoded by many threads
then holds twice of what it uses (mallopt(3): M_ARENA_MAX, M_MMAP_THRESHOLD).
"""

import ctypes
import sys

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
"""Names of the options in `malloc.h`."""
ARENAS = 2
MAPPED_BYTES = 2**20
"""Blocks of that size and more are returned to the system when they are freed."""


def keep_little() -> bool:
    """Bound what freed memory stays with the process; False where the allocator has no such options.

    For the start of a program: threads that run already keep their heaps.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(M_ARENA_MAX, ARENAS) and mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES))
