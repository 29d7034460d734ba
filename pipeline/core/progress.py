"""Progress with rate and time left, for people who watch; silent where there is no terminal.

What everybody should know is said in a line either way.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(
    items: Iterable[Item],
    *,
    label: str,
    total: int | None = None,
    initial: int = 0,
    unit: str = "it",
    size: Callable[[Item], int] = lambda item: 1,
) -> Iterator[Item]:
    """Iterate over `items` and show how far it is, how fast, and how long it still takes.

    Nothing is shown when stderr is no terminal. `total` and `initial` count what `size` says of an item, in
    `unit`.
    """
    with tqdm(
        desc=label,
        total=total,
        initial=initial,
        unit=f" {unit}",
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
    ) as bar:
        for item in items:
            yield item
            bar.update(size(item))


def say(text: str) -> None:
    """Write a line to stderr, above the bars that are shown there."""
    tqdm.write(text, file=sys.stderr)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Without what native code (MediaPipe's graphs, Ray's start) writes to descriptor 2 at any log level."""
    # Python's sys.stderr is of no help, as native code writes past it.
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
