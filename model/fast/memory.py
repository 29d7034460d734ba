"""The process's memory between two large tensors: kept rather than handed back, where the C library is glibc."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # numbers of glibc's mallopt
LARGEST = 2**31 - 1


def keep_memory() -> None:
    """Freed memory stays with the process from now on. Otherwise every tensor of more than 32 MB lies in fresh pages, which the system
    fills with zeros first: a tenth of the fast path's time."""
    for number, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, LARGEST)):
        _call("mallopt", number, value)


def give_back() -> None:
    """Hands back now what is free, so that a measurement of memory begins with what is in use."""
    _call("malloc_trim", 0)


def _call(name: str, *numbers: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function:
        function(*numbers)
