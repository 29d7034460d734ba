"""Reading and writing beside the work, each in a thread.

What comes in is made a step before it is needed, what goes out a step after.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(load: Callable[[int], Item], start: int, stop: int) -> Iterator[tuple[int, Item]]:
    """Yield (i, load(i)) for start <= i < stop.

    The next one is loaded in a thread while the caller works on this one.
    """
    # A thread is enough: decoding, NumPy and torch give up the interpreter's lock while they work.
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = thread.submit(load, start) if start < stop else None
        for i in range(start, stop):
            item = coming.result()  # pyrefly: ignore[missing-attribute]
            coming = thread.submit(load, i + 1) if i + 1 < stop else None
            yield i, item


def write_behind(finish: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield finish(item) of each of `items` in their order.

    One is finished in a thread while the next one is being made.
    """
    # One thread and one pending item bound the memory, and keep the order.
    with ThreadPoolExecutor(max_workers=1) as thread:
        going = None
        for item in items:
            before, going = going, thread.submit(finish, item)
            if before:
                yield before.result()
        if going:
            yield going.result()
