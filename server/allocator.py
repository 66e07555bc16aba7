"""Makes glibc's allocator return freed memory to the system.

By default it gives every thread a heap of its own, raises the size from which a block is mapped by itself up
to 32 MB, and returns only the end of a heap. A server whose pictures are made and encoded by many threads
then holds twice of what it uses (mallopt(3): M_ARENA_MAX, M_MMAP_THRESHOLD; malloc_trim(3)).
"""

import ctypes
import sys
import threading
import time

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
"""Names of the options in `malloc.h`."""
ARENAS = 2
MAPPED_BYTES = 2**20
"""Blocks of that size and more are returned to the system when they are freed."""
TRIM_EVERY_S = 30.0
"""Seconds between returns of what is free within the heaps, on a thread of its own."""


def keep_little() -> bool:
    """Limit the freed memory that the process keeps; False if the allocator has no such options.

    For the start of a program: threads that run already keep their heaps.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        return False
    threading.Thread(target=_trim, args=(libc,), name="return freed memory", daemon=True).start()
    return bool(libc.mallopt(M_ARENA_MAX, ARENAS) and libc.mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES))


def _trim(libc: ctypes.CDLL) -> None:
    while True:
        time.sleep(TRIM_EVERY_S)
        libc.malloc_trim(0)
