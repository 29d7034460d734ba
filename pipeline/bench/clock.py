"""Seconds, operations and memory of what runs in this process."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.fast.memory import give_back

aten = torch.ops.aten
CLOCKS = ("wall", "work")
MOST_RUNS = 9  # of what is measured


@dataclass(frozen=True)
class Seconds:
    """A time by both clocks, see Clock."""

    wall: float
    work: float

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall + other.wall, self.work + other.work)

    def times(self, count: int) -> "Seconds":
        """`count` times as long."""
        return Seconds(count * self.wall, count * self.work)


class Clock:
    """Seconds since it was made: on the wall, and of this process's work shared out to its threads.

    The second is the time that other programs on the same cores leave out of account; where nothing else
    runs, and all threads always have work, the two are the same.
    """

    def __init__(self) -> None:
        self.wall, self.work = time.perf_counter(), time.process_time()

    def read(self) -> Seconds:
        """The time until now."""
        wall = time.perf_counter() - self.wall
        work = time.process_time() - self.work
        return Seconds(wall, work / torch.get_num_threads())


def seconds_of(run: Callable[[], object], budget: float = 1.0) -> Seconds:
    """Median of several runs after one that does not count, each clock for itself."""
    # The first run allocates memory and chooses kernels.
    run()
    walls, works = [], []
    while len(walls) < 3 or (sum(walls) < budget and len(walls) < 20):
        clock = Clock()
        run()
        seconds = clock.read()
        walls.append(seconds.wall)
        works.append(seconds.work)
    middle = len(walls) // 2
    return Seconds(sorted(walls)[middle], sorted(works)[middle])


class Timed:
    """Runs things and remembers the seconds of each, and of all together operations and the most memory."""

    def __init__(self) -> None:
        self.parts: dict[str, Seconds] = {}
        self.gflop = 0.0
        self.peak_mb: float | None = None

    def part(self, name: str, run: Callable[..., Any], *arguments: Any) -> Any:
        """The result of `run`, whose time is that of the part `name`."""
        clock = Clock()
        result = run(*arguments)
        self.parts[name] = clock.read()
        return result

    @property
    def wall(self) -> float:
        """Seconds of all parts."""
        return total(self.parts).wall


def total(parts: dict[str, Seconds]) -> Seconds:
    """The time of all parts."""
    return sum(parts.values(), start=Seconds(0.0, 0.0))


def measured(
    run: Callable[[Timed], Tensor],
    budget: float,
    least: int = 0,
) -> tuple[Timed, Tensor]:
    """The median by time of the runs of `run(timed)` within `budget` seconds, and the first one's result.

    The first run counts operations and memory; it is left out of the median, except where nothing else fits
    and `least` is 0. While operations are counted the rays are those of a single thread.
    """
    # Counting hooks into every operation and costs time, so that it has a run of its own.
    first = Timed()
    forget_peak()
    with counted() as counter:
        pictures = run(first)
    peak = peak_mb()
    runs: list[Timed] = []
    spent = first.wall
    while len(runs) < least or (len(runs) < MOST_RUNS and spent < budget):
        again = Timed()
        run(again)
        runs.append(again)
        spent += again.wall
    by_time = sorted(runs or [first], key=lambda timed: timed.wall)
    middle = by_time[len(runs) // 2]
    middle.gflop, middle.peak_mb = counter.get_total_flops() / 1e9, peak
    return middle, pictures


def forget_peak() -> None:
    """Lets the system count the peak memory of this process anew, where it can."""
    give_back()
    # Linux alone has this file; elsewhere no peak is known.
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_mb() -> float | None:
    """Peak memory of this process since `forget_peak`."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("VmHWM"):
            _, kilobytes, _ = line.split()
            return int(kilobytes) / 1024
    return None


def counted() -> FlopCounterMode:
    """Counts what the fast path adds to PyTorch's own list, too.

    These are convolutions of oneDNN and look-ups (4 texels, 2 operations a channel).
    """
    own = {
        torch.ops.mkldnn._convolution_pointwise: _fused,
        aten._embedding_bag_forward_only: _table,
        aten.grid_sampler_2d: _grid,
    }
    return FlopCounterMode(display=False, custom_mapping=own)


def _fused(x: tuple, other_or_weight: tuple, *rest: object, out_shape: tuple, **_: object) -> int:
    # With a summand the weight is the next argument.
    has_summand = rest and isinstance(rest[0], torch.Size | tuple) and len(rest[0]) == 4
    weight = rest[0] if has_summand else other_or_weight
    return 2 * torch.Size(out_shape).numel() * torch.Size(weight[1:]).numel()


def _table(table: tuple, index: tuple, *_: object, **__: object) -> int:
    # Each index is a texel, which is multiplied and added in every channel.
    _, channels = table
    return 2 * torch.Size(index).numel() * channels


def _grid(image: tuple, grid: tuple, *_: object, **__: object) -> int:
    # Four texels around each point.
    points = torch.Size(grid[:-1]).numel()
    return 8 * image[1] * points
