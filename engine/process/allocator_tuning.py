"""Memory for megabyte replies: kept by the process instead of being returned to the system after every request."""

from __future__ import annotations

import ctypes
import gc
import sys

# glibc's own numbers, from malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
# The most that glibc takes as a threshold; smaller blocks then come from the heap, whose pages are there already.
LARGE_BLOCK_BYTES = 32 * 1024 * 1024
KEPT_BYTES = 48 * 1024 * 1024


def tune_memory() -> None:
    """Tune a long-lived process: keep large buffers, and collect garbage less often."""
    keep_large_buffers()
    # What was made while starting lives as long as the process, and requests leave little behind: the collector need
    # not walk the same objects every few hundred allocations.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def keep_large_buffers() -> bool:
    """Tell glibc to keep up to 48 MB of free memory; False where the C library is another.

    A reply of 128 vectors is a megabyte, several times over on its way. By default each of these buffers is mapped,
    zeroed page by page by the kernel, and unmapped: a third of the CPU of such a request (bench/sync.py).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(
        mallopt(name, value) == 1
        for name, value in (
            (M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES),
            (M_TRIM_THRESHOLD, KEPT_BYTES),
            (M_TOP_PAD, LARGE_BLOCK_BYTES // 8),
            # One heap for all threads: each would keep as much again.
            (M_ARENA_MAX, 1),
        )
    )
