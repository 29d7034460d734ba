"""A training of a second, which can be stopped, in this process or in several.

    python -m tests.support.short_training FOLDER PROCESSES [SECONDS]

trains in FOLDER, with a pause of so many SECONDS in each step, and prints the hashes of weights and
history. It is launched as a stage is.
"""

import copy
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.core.errors import UserError
from pipeline.core.seeds import torch_rng
from pipeline.train.distributed import launch, only_first
from pipeline.train.loop import Run, train
from pipeline.train.schedule import set_rates
from pipeline.train.task import Loss, Task

BATCH, MICROBATCHES = 8, 4


class Stop(Exception):
    pass


class ShortTask(Task[Tensor]):
    """A linear layer learns to copy two of four numbers. Raises Stop in the step `stop_at`."""

    def __init__(self, device: str = "cpu", stop_at: int | None = None, pause: float = 0.0) -> None:
        # BatchNorm has buffers that no optimiser knows, and they too have to survive a resume.
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).to(device)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=1e-2)
        self.networks, self.averages = {"n": self.network}, {"n": self.average}
        self.optimisers = {"o": self.optimiser}
        self.stop_at, self.pause = stop_at, pause

    def batch(self, step: int, microbatch: int) -> Tensor:
        return torch.rand(BATCH // MICROBATCHES, 4, generator=torch_rng(1, step, microbatch))

    def set_rates(self, step: int) -> None:
        set_rates(self.optimiser, step * BATCH, warmup=40, decay_until=0)

    def losses(self, step: int, microbatch: int, batch: Tensor) -> Iterator[Loss]:
        if step == self.stop_at:
            raise Stop
        time.sleep(self.pause)
        # Some microbatches have nothing to say in some steps.
        if (step + microbatch) % 5 == 0:
            return
        loss = (self.network(batch) - batch[:, :2]).square().mean() / MICROBATCHES
        yield Loss("o", loss, {"loss": loss.detach()})


def run_of(folder: Path, steps: int = 80, device: str = "cpu") -> Run:
    return Run(
        "test",
        folder,
        steps,
        BATCH,
        MICROBATCHES,
        half_life=40,
        checkpoint_every=20,
        device=device,
    )


def run(folder: Path, stop_at: int | None = None, steps: int = 80, device: str = "cpu"):
    """The weights, their average and the history after `steps`."""
    task = ShortTask(device, stop_at)
    trained = train(task, run_of(folder, steps, device))
    return task.network.state_dict(), task.average.state_dict(), trained.history


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def main(folder: Path, processes: int, pause: float) -> None:
    """Train as a stage does, and say what came out."""
    if launch(processes, MICROBATCHES):
        return
    task = ShortTask(pause=pause)
    trained = train(task, run_of(folder))
    only_first(trained.group)
    tensors = [*task.network.state_dict().values(), *task.average.state_dict().values()]
    weights = b"".join(tensor.numpy().tobytes() for tensor in tensors)
    history = json.dumps(trained.history, sort_keys=True)
    print(hashlib.sha256(weights).hexdigest(), hashlib.sha256(history.encode()).hexdigest())


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), float((*sys.argv[3:], "0")[0]))
    except UserError as error:
        sys.exit(f"short training: {error}")
