"""The process's memory between two large tensors: kept, not handed back, where the C library is glibc."""

import ctypes
import sys

# Numbers of glibc's mallopt: from how many free bytes on the heap shrinks, and how many blocks may lie
# outside of it, each handed back as soon as it is freed.
TRIM_THRESHOLD, MMAP_MAX = -1, -4
LARGEST = 2**31 - 1


def keep_memory() -> None:
    """Freed memory stays with the process from now on.

    Otherwise every tensor of more than 32 MB lies in fresh pages, which the system fills with zeros first: a
    tenth of the fast path's time.
    """
    _call("mallopt", MMAP_MAX, 0)
    _call("mallopt", TRIM_THRESHOLD, LARGEST)


def give_back() -> None:
    """Hands back now what is free, so that a measurement of memory begins with what is in use."""
    _call("malloc_trim", 0)


def _call(name: str, *numbers: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function:
        function(*numbers)
