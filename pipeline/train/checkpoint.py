"""The state of a training on disk, so that a killed run goes on with the same bits.

`checkpoint-<steps>.safetensors` has the weights, their averages and the state of the optimisers; the
JSON beside it the number of finished steps, the history, what the next row of it has so far, and the
checksum. The last three are kept. Which process writes, and when, changes nothing: a run of four
processes goes on in one. The last one of a finished run may stay, for a longer run to go on from.
"""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes
from pipeline.core.progress import say
from pipeline.networks.weights import forms_of, write_tensors
from pipeline.store.sealed import check_sealed, recover, remove_sealed
from pipeline.train.distributed import GO_ON, Group
from pipeline.train.task import Task

History = list[dict[str, float]]
KEPT = 3
FINISHED = "finished"  # the file that holds how many steps the run had that finished


@dataclass
class Progress:
    """How far a run is: what it knows besides weights and optimisers."""

    done: int = 0  # steps
    history: History = field(default_factory=list)
    # Values of each term since the last row of the history.
    values: dict[str, list[float]] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one run. `folder` is a scratch folder, named after all that the run depends on.

    As a context it ends when the last one is on the disk, however the run ends.
    """

    def __init__(self, folder: Path, group: Group) -> None:
        self.folder, self.group = folder, group
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.writing: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.thread.shutdown()
        if exception == (None, None, None):
            self.wait()

    def save(self, task: Task, progress: Progress) -> None:
        """Keep the state after `progress.done` steps; all processes call it together.

        The first one copies the state, and a thread writes the copy beside the next steps. Raises
        UserError when the processes do not have the same weights, or when the checkpoint before could
        not be written.
        """
        marks = self.group.gather(_mark(task) if self.group.size > 1 else "")
        if len(set(marks)) > 1:
            raise UserError(
                f"the processes have different weights after step {progress.done}: {' '.join(marks)}. "
                f"They compute differently, as processes on unlike machines may. {GO_ON}"
            )
        if not self.group.first:
            return
        self.wait()
        tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in _tensors(task)}
        facts = {
            "done": progress.done,
            "history": list(progress.history),
            "values": {name: list(values) for name, values in progress.values.items()},
        }
        self.writing = self.thread.submit(self._write, tensors, facts)

    def wait(self) -> None:
        """Until the last checkpoint is on the disk. Raises UserError when it could not be written."""
        if self.writing:
            self.writing.result()
            self.writing = None

    def load(self, task: Task, steps: int) -> Progress:
        """Bring `task` to the last state that is whole; all processes call it together.

        A damaged checkpoint is said, and the one before it taken. Those behind `steps` are left alone, and
        so is the end of a run of `steps` that is finished: that one begins anew. Where there is none, `task`
        stays as it is.
        """
        if self.group.first:
            for path in self._paths():
                recover(path)
        self.group.gather(None)
        last = steps - 1 if self._finished() == steps else steps
        for path in reversed(self._paths(last)):
            try:
                facts = check_sealed(path, "The checkpoint before it is taken.")
            except UserError as error:
                if self.group.first:
                    say(str(error))
                continue
            _load(task, path)
            if self.group.first and facts["done"] == self._finished():
                say(f"this run goes on from the end of a shorter one, of {facts['done']} steps")
            return Progress(facts["done"], facts["history"], facts["values"])
        return Progress()

    def remove(self) -> None:
        """Forget them, once the results stand where they belong."""
        for path in self._paths():
            remove_sealed(path)

    def finish(self, steps: int) -> None:
        """Keep the last one alone, as the results of `steps` stand where they belong."""
        write_bytes(self.folder / FINISHED, str(steps).encode())
        for path in self._paths():
            if path != self._path(steps):
                remove_sealed(path)

    def _write(self, tensors: Mapping[str, Tensor], facts: Mapping) -> None:
        done = facts["done"]
        write_tensors(self._path(done), forms_of(tensors), lambda name: [tensors[name]], facts)
        for older in self._paths(done)[:-KEPT]:
            remove_sealed(older)

    def _path(self, done: int) -> Path:
        return self.folder / f"checkpoint-{done:09d}.safetensors"

    def _paths(self, last: int | None = None) -> list[Path]:
        """The checkpoints that are there, up to that of the step `last`, the oldest first.

        One whose removal was cut short may have its JSON alone.
        """
        found = {path.with_suffix(".safetensors") for path in self.folder.glob("checkpoint-*")}
        return sorted(path for path in found if last is None or path <= self._path(last))

    def _finished(self) -> int | None:
        """The steps of the run that finished here, if one did."""
        path = self.folder / FINISHED
        return int(path.read_text()) if path.is_file() else None


def _tensors(task: Task) -> Iterator[tuple[str, Tensor]]:
    """All that a step changes, by name: `optimiser.<name>.<number of the parameter>.<key>`, for example."""
    for prefix, network in _networks(task).items():
        for key, value in network.state_dict().items():
            yield f"{prefix}{key}", value.contiguous()
    for name, optimiser in task.optimisers.items():
        parameters = optimiser.state_dict()["state"]
        for index, state in parameters.items():
            for key, value in state.items():
                yield f"optimiser.{name}.{index}.{key}", torch.as_tensor(value).contiguous()


def _load(task: Task, path: Path) -> None:
    """Undo `_tensors`. Rates and other constants of the optimisers stay as they are."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for prefix, network in _networks(task).items():
        network.load_state_dict(_below(prefix, tensors))
    for name, optimiser in task.optimisers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _below(f"optimiser.{name}.", tensors).items():
            index, entry = key.split(".", 1)
            state.setdefault(int(index), {})[entry] = value
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": state, "param_groups": groups})


def _networks(task: Task) -> dict[str, nn.Module]:
    """All networks with what their tensors' names begin with."""
    networks = {f"module.{name}.": network for name, network in task.networks.items()}
    averages = {f"average.{name}.": network for name, network in task.averages.items()}
    return networks | averages


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    below = {}
    for key, value in tensors.items():
        if key.startswith(prefix):
            below[key.removeprefix(prefix)] = value
    return below


def _mark(task: Task) -> str:
    """A short hash of all weights."""
    found = hashlib.sha256()
    for network in task.networks.values():
        for value in network.state_dict().values():
            found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]
