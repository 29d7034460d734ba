"""What the microbatches of a step add up to: gradients, terms of losses, statistics of BatchNorm."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from pipeline.train.distributed import Group
from pipeline.train.task import Loss, Task
from pipeline.train.tree import TreeSum, Values, add_right

# Buffers that a forward pass changes. Each microbatch starts from those of the step before; the step
# ends with the mean of what the microbatches leave, so that their order means nothing.
MOVING = ("running_mean", "running_var", "num_batches_tracked", "w_avg")


@dataclass(frozen=True)
class Stepped:
    """What all processes know after a step.

    Scalars by name, the optimisers that learn, and the `notes` of each process.
    """

    terms: dict[str, float]
    learning: list[torch.optim.Optimizer]
    notes: list[Any]


class StepSum:
    """Collects the microbatches of this process, and adds those of the others in the end.

    Call `begin`, for each microbatch `take` and `end_microbatch`, then `finish`, and so on.
    """

    def __init__(self, task: Task, group: Group) -> None:
        self.task = task
        self.group = group
        # A walk through all modules takes some milliseconds; it is done once for all steps.
        self.parameters = {}
        for name, optimiser in task.optimisers.items():
            self.parameters[name] = _parameters(optimiser)
        self.buffers = _moving_buffers(task)
        self.begin()

    def begin(self) -> None:
        """Forget the step before."""
        self.gradients = {name: TreeSum() for name in self.task.optimisers}
        self.leaves: dict[str, Values] = {}
        self.terms: list[dict[str, float]] = []
        self.current: dict[str, float] = {}
        self.before = [buffer.clone() for buffer in self.buffers]
        self.after = TreeSum()
        for optimiser in self.task.optimisers.values():
            optimiser.zero_grad(set_to_none=True)

    def take(self, loss: Loss) -> None:
        """Take the gradients of a differentiated loss away from the parameters, and its terms.

        Those of an earlier part of the same loss are added.
        """
        leaf: Values = []
        for parameter in self.parameters[loss.optimiser]:
            leaf.append(parameter.grad)
            parameter.grad = None
        before = self.leaves.get(loss.optimiser)
        self.leaves[loss.optimiser] = leaf if before is None else add_right(before, leaf)
        for name, value in loss.terms.items():
            self.current[name] = self.current.get(name, 0.0) + float(value)

    def end_microbatch(self) -> None:
        """All losses of a microbatch have been taken."""
        for name, tree in self.gradients.items():
            nothing: Values = [None] * len(self.parameters[name])
            tree.add(self.leaves.get(name, nothing))
        self.terms.append(self.current)
        self.leaves, self.current = {}, {}
        self.after.add([buffer.double() for buffer in self.buffers])
        for buffer, before in zip(self.buffers, self.before, strict=True):
            buffer.copy_(before)

    def finish(self, note: Any) -> Stepped:
        """Give the parameters the gradients of the whole batch; `note` is shown to all processes."""
        totals = {}
        present = {}
        for name, tree in self.gradients.items():
            totals[name] = tree.total()
            present[name] = [value is not None for value in totals[name]]
        gathered = self.group.gather((self.terms, present, note))
        terms_of, flags_of, notes = zip(*gathered, strict=True)
        learning = []
        for name, optimiser in self.task.optimisers.items():
            parameters = self.parameters[name]
            # A process adds zeros to what another one has, or they would wait for each other for ever.
            somewhere = _any_of([flags[name] for flags in flags_of])
            gradients = self.group.add(totals[name], somewhere, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            if any(somewhere):
                learning.append(optimiser)
        microbatches = list(chain.from_iterable(terms_of))
        self._set_buffers(len(microbatches))
        terms = _sum_terms(microbatches)
        return Stepped(terms, learning, list(notes))

    def _set_buffers(self, count: int) -> None:
        """Leave the mean over the microbatches."""
        if not self.buffers:
            return
        everywhere = [True] * len(self.buffers)
        total = self.group.add(self.after.total(), everywhere, self.buffers)
        for buffer, value in zip(self.buffers, total, strict=True):
            buffer.copy_(value / count)


def _parameters(optimiser: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    found: list[torch.nn.Parameter] = []
    for group in optimiser.param_groups:
        found += group["params"]
    return found


def _moving_buffers(task: Task) -> list[Tensor]:
    found = []
    for network in task.networks.values():
        for name, buffer in network.named_buffers():
            if name.rpartition(".")[2] in MOVING:
                found.append(buffer)
    return found


def _any_of(flags: list[list[bool]]) -> list[bool]:
    """For each place whether one of the processes has it."""
    return [any(column) for column in zip(*flags, strict=True)]


def _sum_terms(microbatches: list[dict[str, float]]) -> dict[str, float]:
    """The sum of each term, in the order of the microbatches, over those that have it."""
    total: dict[str, float] = {}
    for terms in microbatches:
        for name, value in terms.items():
            total[name] = total.get(name, 0.0) + value
    return total
