"""What is seen of a training while it runs: a line in the terminal, and its curves."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from tqdm import tqdm

from pipeline.core.curves import write_curves
from pipeline.core.progress import say
from pipeline.train.checkpoint import History

Item = TypeVar("Item")
# Seconds between two plain lines where there is no terminal, and over which speed is measured where
# there is one.
PLAIN_EVERY, SPEED_OVER = 60.0, 5.0
SHOWN = 4  # terms in the line


class Watch:
    """The line of one run. It renews itself in a terminal; elsewhere it is said once a minute.

    Losses, images a second, the share of the time that the run waits for data, time left and memory. It
    begins to measure after the first step, which is slower than the others.
    """

    def __init__(
        self, label: str, steps: int, batch: int, start: int, shown: bool, curves: Path | None
    ) -> None:
        """Without `shown`, nothing is seen at all. `curves` is where the history is shown, if anywhere."""
        self.label, self.steps, self.batch, self.done = label, steps, batch, start
        self.shown, self.curves = shown, curves
        self.terminal = shown and sys.stderr.isatty()
        self.every = SPEED_OVER if self.terminal else PLAIN_EVERY
        self.speed = self.waiting_share = 0.0
        self.zeroed = 0
        self._begin()
        self.bar = tqdm(
            desc=label,
            total=steps,
            initial=start,
            unit=" steps",
            bar_format="{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt}{postfix}",
            disable=not self.terminal,
            dynamic_ncols=True,
        )

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, counting how long each is waited for."""
        iterator = iter(items)
        while True:
            began = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.waited += time.monotonic() - began
            yield item

    def step(self, terms: Mapping[str, float], zeroed: int) -> None:
        """A step is done. `zeroed` parameters had gradients that were not finite."""
        self.done += 1
        self.zeroed += zeroed
        seconds = time.monotonic() - self.began
        if self.done - self.first >= 1 and seconds >= self.every:
            self.speed = (self.done - self.first) / seconds
            self.waiting_share = self.waited / seconds
            if not self.terminal and self.shown:
                say(f"{self.label}: step {self.done} of {self.steps}{self._line(terms)}")
            self._begin()
        if self.terminal:
            self.bar.set_postfix_str(self._line(terms), refresh=False)
            self.bar.update(1)

    def row(self, history: History) -> None:
        """The history has a new row."""
        if self.shown and self.curves:
            write_curves(self.curves, history)

    def _begin(self) -> None:
        self.began, self.first, self.waited = time.monotonic(), self.done, 0.0

    def _line(self, terms: Mapping[str, float]) -> str:
        parts = [f"{name} {value:.3g}" for name, value in list(terms.items())[:SHOWN]]
        if self.speed:
            left = (self.steps - self.done) / self.speed
            parts.append(f"{self.speed * self.batch:.3g} images/s")
            parts.append(f"{100 * self.waiting_share:.0f} % waiting for data")
            parts.append(f"{_duration(left)} left")
        parts.append(f"{_memory() / 2**30:.1f} GiB")
        if self.zeroed:
            parts.append(f"{self.zeroed} gradients zeroed")
        return ", " + ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _memory() -> int:
    """Bytes of the GPU where there is one, of this process elsewhere."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss
