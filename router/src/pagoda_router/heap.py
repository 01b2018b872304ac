"""What the C library does with freed memory of this process. Called once, before the router listens; knows nothing of what is in it.

A long prompt passes through some ten blocks of half a megabyte, each freed when the next one is there. Given back to the kernel at once,
all of them are faulted in and zeroed anew for the next prompt: a tenth of what the next turn of a conversation costs (docs/log.md).
"""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's mallopt."""
KEPT_BYTES = 32 << 20
"""Free at the heap's end before it is given back."""
LARGEST_KEPT_BYTES = 4 << 20
"""One block: the ids of a million tokens. A larger one has a mapping of its own, which goes when it is freed."""


def keep_freed_memory() -> None:
    """For the whole process, from here on. Without glibc nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
