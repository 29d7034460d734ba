"""Progress with rate and time left: a bar in a terminal, a line once a minute in a log.

What everybody should know is said in a line either way.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from pipeline.core.readable import readable_count, readable_time

Item = TypeVar("Item")
SAID_EVERY = 60.0  # seconds between two lines where there is no terminal


def progress(
    items: Iterable[Item],
    *,
    label: str,
    total: int | None = None,
    initial: int = 0,
    unit: str = "items",
    size: Callable[[Item], int] = lambda item: 1,
) -> Iterator[Item]:
    """Iterate over `items` and show how far it is, how fast, and how long it still takes.

    Where stderr is no terminal, a line says so once a minute, and nothing of what takes less. `total` and
    `initial` count what `size` says of an item, in `unit`, a plural.
    """
    terminal = sys.stderr.isatty()
    done, began = initial, time.monotonic()
    said = began
    with tqdm(
        desc=label,
        total=total,
        initial=initial,
        unit=f" {unit}",
        disable=not terminal,
        dynamic_ncols=True,
    ) as bar:
        for item in items:
            yield item
            done += size(item)
            bar.update(size(item))
            now = time.monotonic()
            if not terminal and now - said >= SAID_EVERY:
                said = now
                pace = (done - initial) / (now - began)
                say(f"{label}: {_how_far(done, total, unit, pace)}")


def _how_far(done: int, total: int | None, unit: str, pace: float) -> str:
    if total is None:
        return f"{readable_count(done, unit)}, {pace:.3g} a second"
    how_fast = f"{pace:.3g} a second, {readable_time((total - done) / pace)} left" if pace else "nothing yet"
    return f"{done:,} of {readable_count(total, unit)}, {how_fast}"


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
