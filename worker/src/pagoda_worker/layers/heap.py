"""What the C library does with freed memory of this process. Called by the engine, on CPUs, before the first step; knows no tensors.

A step frees what it computed layer by layer, and the next layer asks for as much again. Given back to the kernel in between, every page is
faulted in and zeroed anew (docs/log.md).
"""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's mallopt."""
KEPT_BYTES = 1 << 29
"""Free at the heap's end before it is given back: more than a step's tensors of a model that a CPU serves."""
LARGEST_KEPT_BYTES = 32 << 20
"""One tensor; glibc takes no more. A larger one has a mapping of its own, which goes when it is freed."""


def keep_freed_memory() -> None:
    """For the whole process, from here on; what sleeping frees goes back all the same (loading/sleep.py). Without glibc nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
