"""Memory that a training step frees is kept for the next one.

glibc maps every large tensor anew and unmaps it when it is freed. The kernel then hands out the next one's pages cleared, one
fault at a time, which was up to a tenth of a step's CPU time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of mallopt(3), and their defaults.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_DEFAULT_TRIM_BYTES, _DEFAULT_MMAPS = 128 << 10, 65536
_NEVER = -1


def give_back() -> None:
    """Give memory that is free to the system. Without glibc, nothing happens."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@contextmanager
def memory_kept() -> Iterator[None]:
    """Keep what is freed inside, and give it back to the system at the end. Without glibc, nothing happens."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _DEFAULT_MMAPS)
        libc.mallopt(_TRIM_THRESHOLD, _DEFAULT_TRIM_BYTES)
        give_back()
