"""The training loop that every network of the project goes through, with exact resume."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from pipeline.core.device import to_device
from pipeline.core.errors import UserError
from pipeline.core.prefetch import prefetch
from pipeline.core.progress import progress
from pipeline.train.checkpoint import Checkpoint, History
from pipeline.train.moves import Moves
from pipeline.train.task import Task

LOG = logging.getLogger(__name__)
# Points of a loss curve, whatever the length of the run.
HISTORY_ROWS = 40
# A gradient that is not finite becomes 0, or this (facts 4.1).
LARGEST_GRADIENT = 1e5


@dataclass(frozen=True)
class Run:
    """How long a training is, and how often it stops to look and to save.

    `folder` is a scratch folder of this run alone: its name holds the fingerprint of every input that counts.
    """

    label: str
    folder: Path
    steps: int
    batch: int  # samples a step, in the history's `images` and in the moving average
    half_life: int = 0  # of the moving average, in images
    checkpoint_every: int = 500  # steps
    preview_every: int = 0  # steps; 0 looks at the end alone
    device: torch.device | str = "cpu"


@dataclass(frozen=True)
class Trained:
    """What a training leaves besides its weights.

    `history` has a row of means per interval: `step`, `images` and the terms of the losses. Rows of held-out
    people have names that begin with "validation_". `moved` says how far each group of layers has moved.
    """

    history: History
    moved: Mapping[str, float]


def train(task: Task, run: Run) -> Trained:
    """Train `task` from its last checkpoint, or from its beginning, to the end.

    The networks lie on `run.device`, to which the batches are brought. Held-out people are looked at before
    the first step, every `preview_every` steps and at the end. The checkpoint stays: call `forget` once the
    results stand where they belong. Raises UserError when a value stops being finite, with its name.
    """
    # Before the checkpoint is loaded: a resumed run has moved from its first weights, too.
    moves, moved = Moves(task.networks, task.optimisers.values()), {}
    checkpoint = Checkpoint(run.folder)
    start, history = checkpoint.load(task)
    if start == 0:
        history += _validation(task, run, done=0)
    means = Means()
    interval = max(1, run.steps // HISTORY_ROWS)
    # A checkpoint is only written where a row of the history ends, so that a resumed run has the rows of an
    # undisturbed one.
    save_every = max(interval, run.checkpoint_every // interval * interval)

    batches = prefetch(task.batch, start, run.steps)
    for step, batch in progress(
        batches,
        label=run.label,
        total=run.steps,
        initial=start,
    ):
        batch = to_device(batch, run.device)
        task.set_rates(step)
        # All losses are differentiated before anything moves, so that their order means nothing.
        learning = []
        for loss in task.losses(step, batch):
            optimiser = task.optimisers[loss.optimiser]
            optimiser.zero_grad(set_to_none=True)
            loss.total.backward()
            means.add(loss.terms)
            learning.append(optimiser)
        for optimiser in learning:
            clean_gradients(optimiser)
            optimiser.step()
        done = step + 1
        update_averages(task, run, done * run.batch)

        last = done == run.steps
        if last or done % interval == 0:
            row = means.take(f"{run.label}: ", f" around step {done}")
            history.append({"step": done, "images": done * run.batch, **row})
        if last or (run.preview_every and done % run.preview_every == 0):
            task.preview(run.folder / f"preview-{done:07d}.jpg")
            history += _validation(task, run, done)
            moved = moves.measure()
            told = "%s, step %d: the layers that have moved least, over their size\n%s"
            LOG.info(told, run.label, done, moves.table(moved))
        if not last and done % save_every == 0:
            checkpoint.save(done, task, history)
    return Trained(history, moved)


def forget(run: Run) -> None:
    """Remove the checkpoint of a run whose results stand where they belong."""
    Checkpoint(run.folder).remove()


def clean_gradients(optimiser: torch.optim.Optimizer) -> None:
    """Make gradients that are not finite 0 or as large as LARGEST_GRADIENT (facts 4.1)."""
    for parameter in _parameters(optimiser):
        if parameter.grad is not None:
            torch.nan_to_num_(
                parameter.grad,
                nan=0.0,
                posinf=LARGEST_GRADIENT,
                neginf=-LARGEST_GRADIENT,
            )


def update_averages(task: Task, run: Run, images: int) -> None:
    """Bring the moving averages a step nearer to their networks, `images` after the start.

    The half-life is shorter in the beginning, 0.05 of the images seen (facts 4.1). Buffers are copied.
    """
    half_life = max(min(run.half_life, 0.05 * images), 1e-8)
    decay = 0.5 ** (run.batch / half_life)
    with torch.no_grad():
        for name, average in task.averages.items():
            network = task.networks[name]
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1.0 - decay)
            for mine, theirs in zip(average.buffers(), network.buffers(), strict=True):
                mine.copy_(theirs)


@dataclass
class Means:
    """Collects the terms of losses and gives their means since the last time."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """One value of each term."""
        for name, value in terms.items():
            self.values.setdefault(name, []).append(float(value))

    def take(self, before: str = "", after: str = "") -> dict[str, float]:
        """The means, rounded; then they begin anew.

        Raises UserError when one is not finite, with its name between the words.
        """
        means = {name: round(sum(values) / len(values), 6) for name, values in self.values.items()}
        self.values.clear()
        for name, value in means.items():
            if value != value or abs(value) == float("inf"):
                advice = "Lower the learning rate of this stage and run again."
                raise UserError(f"{before}'{name}' is {value}{after}. {advice}")
        return means


def _validation(task: Task, run: Run, done: int) -> History:
    """A row about held-out people, if there are numbers of them."""
    found = {f"validation_{name}": round(float(value), 6) for name, value in task.validate().items()}
    return [{"step": done, "images": done * run.batch, **found}] if found else []


def _parameters(optimiser: torch.optim.Optimizer) -> Iterable[torch.nn.Parameter]:
    for group in optimiser.param_groups:
        yield from group["params"]
