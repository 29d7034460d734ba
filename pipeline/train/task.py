"""What the training loop is told about a training: networks, optimisers, batches and losses."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from pipeline.train.distributed import Group

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Loss:
    """What one optimiser makes smaller in a step.

    `total` is a differentiable scalar. `terms` are scalars for the history: its parts, as a rule.
    """

    optimiser: str
    total: Tensor
    terms: Mapping[str, Tensor]

    @classmethod
    def weighted(
        cls,
        optimiser: str,
        terms: Mapping[str, Tensor],
        weights: Mapping[str, float],
    ) -> "Loss":
        """The sum of `terms`, scalars, each times its weight."""
        total = sum(weights[name] * value for name, value in terms.items())
        shown = {name: value.detach() for name, value in terms.items()}
        return cls(optimiser, total, shown)


class Task(ABC, Generic[Batch]):
    """A training: `loop.train` goes through its steps, microbatch by microbatch.

    What is done for a microbatch may depend on its step and number alone, as any process may do it.
    `networks` hold all weights that training changes, `optimisers` change them, `averages` are the
    moving averages of some networks, under the same names.
    """

    networks: Mapping[str, nn.Module]
    optimisers: Mapping[str, torch.optim.Optimizer]
    averages: Mapping[str, nn.Module] = {}

    @abstractmethod
    def batch(self, step: int, microbatch: int) -> Batch:
        """A microbatch of a step, on the CPU. It is called in a thread, a step ahead."""

    @abstractmethod
    def set_rates(self, step: int) -> None:
        """Give the optimisers their learning rates for a step."""

    @abstractmethod
    def losses(self, step: int, microbatch: int, batch: Batch) -> Iterator[Loss]:
        """The losses of a microbatch. That of an optimiser may come in parts, which are added up.

        Over all microbatches of a step they sum up to those of the whole batch. The loop differentiates
        a loss before it asks for the next one, so that two graphs are never in memory together. The
        optimisers step after the last one.
        """

    def validate(self, group: Group) -> Mapping[str, float]:
        """Numbers of people who are not trained on.

        All processes of `group` call it together; those of the first one count.
        """
        return {}

    def preview(self, path: Path) -> None:
        """Draw what the networks make of some training samples, if there is something to draw."""

    def snapshot(self, path: Path, images: int) -> None:
        """Write to `path` what the training would leave if it ended now, after so many images."""
