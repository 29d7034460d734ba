"""Training in several processes, with the bits of one.

The processes hold the same weights. Each computes whole microbatches, and gradients are added in the
order of one tree (`tree`), so that what a step does is no function of the number of processes. On the
CPU each computes with one thread: the sums of a thread pool depend on its size.

A stage launches its processes itself (`launch`). Started by torchrun, on one machine or on several, it
joins them. What they show each other goes through `exchange`.
"""

import contextlib
import logging
import os
import runpy
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

from pipeline.core.errors import LAST_WORDS, UserError, first_words
from pipeline.core.limits import cores
from pipeline.train.exchange import GONE, Exchange, exchange
from pipeline.train.tree import Values

Item = TypeVar("Item")
# The status of a stage that was told to stop and will go on: EX_TEMPFAIL of sysexits.
STOPPED = 75
# While the first process looks at held-out people the others wait for it.
PATIENCE = timedelta(hours=12)
# Seconds that processes have for their last step and a checkpoint, once they are told to stop.
LAST_STEP = 600


@dataclass(frozen=True)
class Group:
    """The processes that train together. This one is number `rank` of `size`.

    Where it is alone there is no `exchange`.
    """

    rank: int = 0
    size: int = 1
    exchange: Exchange | None = None
    parent: int = field(default_factory=os.getppid)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    @property
    def orphaned(self) -> bool:
        """Whether the launcher is gone: without it a part of the processes could go on for ever."""
        return self.size > 1 and os.getppid() != self.parent

    def share(self, microbatches: int) -> range:
        """The microbatches of this process: those below one node of the tree."""
        each = microbatches // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order."""
        if self.exchange is None:
            return [value]
        with _together():
            return self.exchange.gather(value)

    def deal(self, function: Callable[[Item], Any], items: Sequence[Item]) -> list[Any]:
        """What `function` makes of each item, in their order; each process does its part of them."""
        mine = [function(item) for item in items[self.rank :: self.size]]
        made: list[Any] = [None] * len(items)
        for rank, part in enumerate(self.gather(mine)):
            made[rank :: self.size] = part
        return made

    def add(
        self,
        values: Values,
        somewhere: Sequence[bool],
        like: Sequence[torch.Tensor],
    ) -> Values:
        """The sum of the values of all processes, in the order of the tree.

        `somewhere` says which are not None in one of them, `like` has their shapes.
        """
        if self.exchange is None or not any(somewhere):
            return values
        chosen = [index for index, found in enumerate(somewhere) if found]
        pieces = []
        for index in chosen:
            value = values[index]
            pieces.append(torch.zeros_like(like[index]) if value is None else value)
        with _together():
            total = self.exchange.add(pieces)
        parts = total.split([piece.numel() for piece in pieces])
        found: Values = [None] * len(values)
        for index, part in zip(chosen, parts, strict=True):
            found[index] = part.view_as(like[index])
        return found


def launch(wanted: int, microbatches: int) -> bool:
    """Run the command of this process in several processes and wait for them.

    There are `wanted` of them (0: one for each GPU, or core), but not more than `microbatches`, and a
    power of two. Returns False where that is one, or this process is one of several already: it has to
    do the work itself. When a process fails the others are stopped, and this one raises UserError.

    On Linux without a GPU they are forked, so that what is imported now need not be imported again.
    """
    # Also for what is made before and after the steps.
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    count = processes(wanted, microbatches)
    if count == 1 or "RANK" in os.environ:
        return False
    # They take a second to load, which a process that trains alone can do without.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # A process that has spoken to a GPU cannot be forked, and other systems have no safe fork.
    forked = sys.platform == "linux" and not torch.cuda.is_available()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=f"psi4d-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        start_method="fork",
        shutdown_timeout=LAST_STEP,
        logs_specs=DefaultLogsSpecs(),
    )
    # Its reports name files of PyTorch; what happened is said below in our words.
    for talkative in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logging.getLogger(talkative).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as last_words:
        os.environ[LAST_WORDS] = last_words
        try:
            if forked:
                elastic_launch(config, _begin_again)()
            else:
                elastic_launch(config, sys.executable)(*_command())
        except ChildFailedError as error:
            codes = {failure.exitcode for failure in error.failures.values()}
            if codes == {STOPPED}:
                raise SystemExit(STOPPED) from error
            said = first_words(Path(last_words))
            raise UserError(said or f"a process ended with {_words(codes)}. {GO_ON}") from error
        except SignalException as error:
            raise SystemExit(STOPPED) from error
        finally:
            del os.environ[LAST_WORDS]
    return True


def _begin_again() -> None:
    """Run the command of the process that was forked, from its beginning."""
    # A Ctrl-C in the terminal is for the launcher, which passes it on. Its own handlers came along.
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    try:
        if spec:
            runpy.run_module(spec.name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except KeyboardInterrupt as error:
        # The launcher would take an end by this alone for success, and wait for the result.
        raise SystemExit(128 + signal.SIGINT) from error
    except Exception as error:
        # PyTorch would keep it to itself.
        traceback.print_exc()
        raise SystemExit(1) from error


def _command() -> list[str]:
    """How this process was started, as arguments of Python: -m stages.train, as a rule."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return ["-m", spec.name, *sys.argv[1:]] if spec else list(sys.argv)


GO_ON = "Run again to go on from the last checkpoint."


def processes(wanted: int, microbatches: int) -> int:
    """How many processes train together: a power of two, at most `wanted` and one for each microbatch."""
    available = torch.cuda.device_count() or cores()
    most = min(wanted or available, microbatches)
    return 1 << (most.bit_length() - 1)


def join(microbatches: int, device: torch.device) -> Group:
    """The group of this process: what torchrun or `launch` started together, or itself alone.

    Raises UserError when they are not a power of two, or more than microbatches.
    """
    if device.type != "cuda":
        torch.set_num_threads(1)
    if "RANK" not in os.environ:
        return Group()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if microbatches % size:
        raise UserError(
            f"{size} processes cannot share {microbatches} microbatches evenly. Start 1, 2, 4 or "
            "another power of two, or make the microbatch of this stage smaller."
        )
    if not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    with _together():
        return Group(rank, size, exchange(rank, size, device))


def only_first(group: Group) -> None:
    """End all processes but the first: results are written once."""
    group.gather(None)
    if group.size > 1:
        distributed.destroy_process_group()
    if not group.first:
        raise SystemExit(0)


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Say in words that another process is gone. Raises UserError for what torch raises then."""
    try:
        yield
    except GONE as error:
        # The launcher says it once, in place of all that are left.
        if LAST_WORDS in os.environ:
            raise SystemExit(1) from error
        raise UserError(f"another process of this training is gone. {GO_ON}") from error


def _words(codes: set[int]) -> str:
    """Statuses of processes, negative ones being signals."""
    signals = [f"signal {-code}" for code in sorted(codes) if code < 0]
    others = [f"status {code}" for code in sorted(codes) if code >= 0]
    return " and ".join(signals + others)
