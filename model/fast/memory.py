"""The process's memory between two large tensors: kept, not handed back, where the C library is glibc."""

import ctypes
import sys

# Numbers of glibc's mallopt: from how many free bytes on the heap shrinks, from how many bytes on a block
# lies outside of it, and how many may. Those are handed back as soon as they are freed.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
LARGEST = 2**31 - 1
LARGEST_ON_HEAP = 32 * 2**20  # glibc takes no higher threshold


def keep_memory() -> None:
    """Freed memory stays with the process from now on.

    Otherwise every tensor of more than 32 MB lies in fresh pages, which the system fills with zeros first: a
    tenth of the fast path's time.
    """
    _call("mallopt", MMAP_MAX, 0)
    _call("mallopt", TRIM_THRESHOLD, LARGEST)


def keep_memory_of_small_tensors() -> None:
    """The same for tensors of up to 32 MB alone.

    A training frees its tensors in another order than it made them: large ones would leave holes on the heap,
    and a step of Psi_3d at the published sizes take 18.1 GiB in place of 14.5.
    """
    _call("mallopt", MMAP_THRESHOLD, LARGEST_ON_HEAP)
    _call("mallopt", TRIM_THRESHOLD, LARGEST)


def give_back() -> None:
    """Hands back now what is free, so that a measurement of memory begins with what is in use."""
    _call("malloc_trim", 0)


def _call(name: str, *numbers: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function:
        function(*numbers)
