"""A training of a second, which can be stopped."""

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.core.seeds import torch_rng
from pipeline.train.loop import Run, train
from pipeline.train.schedule import set_rates
from pipeline.train.task import Loss, Task

BATCH = 4


class Stop(Exception):
    pass


class ShortTask(Task[Tensor]):
    """A linear layer learns to copy two of four numbers. Raises Stop in the step `stop_at`."""

    def __init__(self, device: str = "cpu", stop_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.network = nn.Linear(4, 2).to(device)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=1e-2)
        self.networks, self.averages = {"n": self.network}, {"n": self.average}
        self.optimisers = {"o": self.optimiser}
        self.stop_at = stop_at

    def batch(self, step: int) -> Tensor:
        return torch.rand(BATCH, 4, generator=torch_rng(1, step))

    def set_rates(self, step: int) -> None:
        set_rates(self.optimiser, step * BATCH, warmup=40, decay_until=0)

    def losses(self, step: int, batch: Tensor) -> Iterator[Loss]:
        if step == self.stop_at:
            raise Stop
        loss = (self.network(batch) - batch[:, :2]).square().mean()
        yield Loss("o", loss, {"loss": loss.detach()})


def run(folder: Path, stop_at: int | None = None, steps: int = 80, device: str = "cpu"):
    """The weights, their average and the history after `steps`."""
    task = ShortTask(device, stop_at)
    trained = train(
        task,
        Run("test", folder, steps, BATCH, half_life=40, checkpoint_every=20, device=device),
    )
    return task.network.state_dict(), task.average.state_dict(), trained.history


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
