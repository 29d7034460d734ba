"""Progress with rate and time left, for people who watch; silent when nobody does."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], *, label: str, total: int | None = None, initial: int = 0) -> Iterator[Item]:
    """Iterate over `items` and show how far it is, how fast and how long it still takes; nothing at all when stderr is no terminal."""
    yield from tqdm(items, desc=label, total=total, initial=initial, disable=not sys.stderr.isatty(), dynamic_ncols=True)
