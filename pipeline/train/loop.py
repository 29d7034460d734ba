"""The training loop that every network of the project goes through.

It is the same in one process and in several, goes on exactly where a killed run was, and can be watched.
"""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from model.fast.memory import keep_memory_of_small_tensors
from pipeline.core.device import to_device
from pipeline.core.errors import UserError
from pipeline.core.prefetch import prefetch
from pipeline.core.progress import say
from pipeline.engine.scratch import write_plan
from pipeline.train.checkpoint import Checkpoints, History, Progress
from pipeline.train.distributed import GO_ON, STOPPED, Group, join
from pipeline.train.moves import Moves
from pipeline.train.step_sum import StepSum
from pipeline.train.stopping import Stopping
from pipeline.train.task import Task
from pipeline.train.watch import Watch

LOG = logging.getLogger(__name__)
# Points of a loss curve, whatever the length of the run.
HISTORY_ROWS = 40
# A gradient that is not finite becomes 0, or this (facts 4.1).
LARGEST_GRADIENT = 1e5
# A checkpoint is written at least so often, however long a step takes.
CHECKPOINT_SECONDS = 600.0


@dataclass(frozen=True)
class Run:
    """How long a training is, and how often it stops to look and to save.

    `folder` is a scratch folder of this run alone: its name holds the fingerprint of every input that counts.
    """

    label: str
    folder: Path
    steps: int
    batch: int  # samples a step, in the history's `images` and in the moving average
    microbatches: int = 1  # a power of two, into which a batch is cut
    half_life: int = 0  # of the moving average, in images
    checkpoint_every: int = 500  # steps
    preview_every: int = 0  # steps; 0 looks at the end alone
    snapshot_every: int = 0  # steps; 0 is never
    device: torch.device | str = "cpu"
    curves: Path | None = None  # where the history is shown while the run goes on


@dataclass(frozen=True)
class Note:
    """What a process tells the others after each step."""

    stop: bool  # it was told to
    save: bool  # it is time to


@dataclass(frozen=True)
class Trained:
    """What a training leaves besides its weights.

    `history` has a row of means per interval: `step`, `images` and the terms of the losses. Rows of
    held-out people have names that begin with "validation_". `moved` says how far each group of layers
    has moved. Both are those of the first process of `group`; the others have less.
    """

    history: History
    moved: Mapping[str, float]
    group: Group


def train(task: Task, run: Run) -> Trained:
    """Train `task` from its last checkpoint, or from its beginning, to the end.

    The networks lie on `run.device`, to which the batches are brought. Held-out people are looked at before
    the first step, every `preview_every` steps and at the end. The checkpoints stay: call `forget` or
    `finish` once the results stand where they belong.

    A signal (SIGTERM, SIGINT) ends the process after its step and a checkpoint, with status STOPPED. Raises
    UserError when a value stops being finite, with its name, before it changes a weight.
    """
    group = join(run.microbatches, torch.device(run.device))
    keep_memory_of_small_tensors()
    mine = group.share(run.microbatches)
    # Before a checkpoint is loaded: a resumed run has moved from its first weights, too.
    moves = Moves(task.networks, task.optimisers.values())
    checkpoints = Checkpoints(run.folder, group)
    progress = checkpoints.load(task, run.steps)
    if progress.done == 0:
        progress.history += _validation(task, run, 0, group)
    if group.first:
        _write_plan(run, progress.done)
    interval = max(1, run.steps // HISTORY_ROWS)
    saved = time.monotonic()

    def load(step: int) -> list:
        return [task.batch(step, microbatch) for microbatch in mine]

    batches = prefetch(load, progress.done, run.steps)
    step_sum = StepSum(task, group)
    watch = Watch(run.label, run.steps, run.batch, progress.done, group.first, run.curves)
    watch.row(progress.history)
    with watch, checkpoints, Stopping() as stopping:
        for step, parts in watch.timed(batches):
            task.set_rates(step)
            # All losses are differentiated before anything moves, so that their order means nothing.
            step_sum.begin()
            for microbatch, part in zip(mine, parts, strict=True):
                for loss in task.losses(step, microbatch, to_device(part, run.device)):
                    loss.total.backward()
                    step_sum.take(loss)
                step_sum.end_microbatch()
            late = time.monotonic() - saved > CHECKPOINT_SECONDS
            stop = stopping.asked or group.orphaned
            stepped = step_sum.finish(Note(stop, save=late and group.first))
            _check(stepped.terms, run, step, group)
            zeroed = 0
            for optimiser in stepped.learning:
                zeroed += clean_gradients(optimiser)
                optimiser.step()
            progress.done = done = step + 1
            update_averages(task, run, done * run.batch)
            for name, value in stepped.terms.items():
                progress.values.setdefault(name, []).append(value)
            watch.step(stepped.terms, zeroed)

            last = done == run.steps
            if last or done % interval == 0:
                progress.history.append({"step": done, "images": done * run.batch, **_means(progress)})
                watch.row(progress.history)
            looks = last or (run.preview_every > 0 and done % run.preview_every == 0)
            if looks:
                if group.first:
                    task.preview(run.folder / f"preview-{done:07d}.jpg")
                progress.history += _validation(task, run, done, group)
                watch.row(progress.history)
            if looks and group.first and (still := moves.still(moves.measure())):
                names = ", ".join(still)
                LOG.info("%s, step %d: layers that have not moved yet: %s", run.label, done, names)
            if group.first and run.snapshot_every and done % run.snapshot_every == 0:
                images = done * run.batch
                task.snapshot(run.folder / f"snapshot-{images:09d}.safetensors", images)

            stop = any(note.stop for note in stepped.notes) and not last
            save = any(note.save for note in stepped.notes) or done % run.checkpoint_every == 0
            if stop or save or last:
                checkpoints.save(task, progress)
                saved = time.monotonic()
            if stop:
                _stop(checkpoints, run, done)
    return Trained(progress.history, moves.measure(), group)


def forget(run: Run) -> None:
    """Remove the checkpoints of a run whose results stand where they belong."""
    Checkpoints(run.folder, Group()).remove()
    # There is no checkpoint any more by which `psi4d status` could count the steps.
    _write_plan(run, run.steps)


def _write_plan(run: Run, start: int) -> None:
    """Say for `psi4d status` how long the training is and where this process begins."""
    curves = str(run.curves) if run.curves else ""
    plan = {"steps": run.steps, "batch": run.batch, "start": start, "curves": curves}
    write_plan(run.folder, plan)


def finish(run: Run) -> None:
    """The same, but the last one stays: a run of more steps in this folder goes on from it."""
    Checkpoints(run.folder, Group()).finish(run.steps)


def clean_gradients(optimiser: torch.optim.Optimizer) -> int:
    """Make gradients that are not finite 0 or as large as LARGEST_GRADIENT (facts 4.1).

    Returns the number of parameters that had some.
    """
    gradients = []
    for group in optimiser.param_groups:
        gradients += [parameter.grad for parameter in group["params"] if parameter.grad is not None]
    if not gradients:
        return 0
    # Hardly ever there is something to be done, and a norm shows it at a tenth of the price of isfinite. It
    # may be infinite by its squares alone, so that the gradients themselves are asked as well.
    norms = torch.stack(torch._foreach_norm(gradients))
    suspects = (~norms.isfinite()).cpu().nonzero().flatten().tolist()
    cleaned = 0
    for index in suspects:
        gradient = gradients[index]
        cleaned += not bool(gradient.isfinite().all())
        torch.nan_to_num_(gradient, nan=0.0, posinf=LARGEST_GRADIENT, neginf=-LARGEST_GRADIENT)
    return cleaned


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


def _check(
    terms: Mapping[str, float],
    run: Run,
    step: int,
    group: Group,
) -> None:
    """Stop where a term is not finite, before it changes a weight."""
    for name, value in terms.items():
        if not math.isfinite(value):
            # The first process says it for all: the others wait until it is gone, and end with it.
            if not group.first:
                group.gather(None)
            raise UserError(
                f"{run.label}: '{name}' is {value} at step {step + 1}. Lower the learning rate of this "
                f"stage and run again; the checkpoints before it lie in {run.folder}."
            )


def _means(progress: Progress) -> dict[str, float]:
    """The mean of each term since the last row; they begin anew."""
    means = {name: round(sum(values) / len(values), 6) for name, values in progress.values.items()}
    progress.values.clear()
    return means


def _validation(task: Task, run: Run, done: int, group: Group) -> History:
    """A row about held-out people, if there are numbers of them."""
    numbers = task.validate(group)
    found = {f"validation_{name}": round(float(value), 6) for name, value in numbers.items()}
    return [{"step": done, "images": done * run.batch, **found}] if found else []


def _stop(checkpoints: Checkpoints, run: Run, done: int) -> None:
    """End this process once the first one has written the checkpoint, and said so."""
    checkpoints.wait()
    if checkpoints.group.first:
        say(f"{run.label}: stopped after step {done} of {run.steps}. {GO_ON}")
    # The launcher ends all others as soon as one has ended.
    checkpoints.group.gather(None)
    raise SystemExit(STOPPED)
