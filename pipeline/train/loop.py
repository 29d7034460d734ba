"""The training loop that every network of the project goes through: counted steps, exact resume, moving average, history, previews."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.core.device import to_device
from pipeline.core.errors import UserError
from pipeline.core.files import sha256, write_bytes, write_json
from pipeline.core.prefetch import prefetch
from pipeline.core.progress import progress
from pipeline.train.moves import Moves

Batch = TypeVar("Batch")
LOG = logging.getLogger(__name__)
HISTORY_ROWS = 40  # points of a loss curve, whatever the length of the run


@dataclass
class TrainingLoop:
    """What a run changes while it goes, all of it kept in a checkpoint.

    `modules` are the networks, `optimisers` theirs, `averages` maps the name of a module to its exponential moving average.
    All of them are on `device`, to which `run` brings the batches.
    `folder` is a scratch folder of this run alone (its name holds the fingerprint of every input that matters).
    """

    label: str
    folder: Path
    steps: int
    batch: int
    modules: dict[str, nn.Module]
    optimisers: dict[str, torch.optim.Optimizer]
    averages: dict[str, nn.Module] = field(default_factory=dict)
    half_life: int = 0  # of the average, in images
    checkpoint_every: int = 500
    history: list[dict[str, float]] = field(default_factory=list)
    moved: dict[str, float] = field(default_factory=dict)
    device: torch.device | str = "cpu"

    def run(
        self,
        load: Callable[[int], Batch],
        step: Callable[[int, Batch], dict[str, Tensor | float]],
        preview: Callable[[int], None] | None = None,
        preview_every: int = 0,
        validate: Callable[[], dict[str, float]] | None = None,
    ) -> list[dict[str, float]]:
        """Train from the last checkpoint to the end; returns the history, one row of means per interval (`step`, `images`, the values of `step`).

        `load(i)` makes the batch of step i and must depend on i alone: it runs one step ahead in a thread. `step(i, batch)` computes,
        differentiates and updates, and returns scalars. `validate()` measures held-out people: before the first step, as often as `preview`
        draws, and at the end; its values make rows of the history whose names begin with "validation_". How far each group of layers has
        moved is logged then, and is in `moved` after the run.

        Raises UserError when a value stops being finite, naming step and value.
        """
        moves = Moves(self.modules, self.optimisers.values())
        start = self._resume()
        if validate and start == 0:
            self._validate(0, validate)
        interval = max(1, self.steps // HISTORY_ROWS)
        sums: dict[str, list[float]] = {}
        batches = prefetch(load, start, self.steps)
        for i, batch in progress(batches, label=self.label, total=self.steps, initial=start):
            for name, value in step(i, to_device(batch, self.device)).items():
                sums.setdefault(name, []).append(float(value))
            self._average((i + 1) * self.batch)
            done = i + 1
            if done % interval == 0 or done == self.steps:
                self._record(done, sums)
                sums = {}
            if done == self.steps or (preview_every and done % preview_every == 0):
                if preview:
                    preview(done)
                if validate:
                    self._validate(done, validate)
                self.moved = moves.measure()
                LOG.info(
                    "%s, step %d: the layers that have moved least, over their size\n%s",
                    self.label,
                    done,
                    moves.table(self.moved),
                )
            # Only where the sums are empty, so that a resumed run has the same history as an undisturbed one.
            if (
                not sums
                and done < self.steps
                and done % max(interval, self.checkpoint_every // interval * interval) == 0
            ):
                self._checkpoint(done)
        return self.history

    def _validate(self, done: int, validate: Callable[[], dict[str, float]]) -> None:
        row = {f"validation_{name}": round(float(value), 6) for name, value in validate().items()}
        if row:
            self.history.append({"step": done, "images": done * self.batch, **row})

    def finish(self) -> None:
        """Forget the checkpoint, once the results stand where they belong."""
        for path in (self.folder / "checkpoint.json", self.folder / "checkpoint.safetensors"):
            path.unlink(missing_ok=True)

    def _record(self, done: int, sums: dict[str, list[float]]) -> None:
        row = {name: round(sum(values) / len(values), 6) for name, values in sums.items()}
        for name, value in row.items():
            if value != value or abs(value) == float("inf"):
                raise UserError(
                    f"{self.label}: '{name}' is {value} around step {done}. Lower the learning rate of this stage and run again."
                )
        self.history.append({"step": done, "images": done * self.batch, **row})

    def _average(self, images: int) -> None:
        """Exponential moving average with a half-life in images, shorter at the start (facts 4.1: ramp-up 0.05); buffers are copied."""
        if not self.averages:
            return
        decay = 0.5 ** (self.batch / max(min(self.half_life, 0.05 * images), 1e-8))
        for name, average in self.averages.items():
            source = self.modules[name]
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(source.parameters()), 1.0 - decay)
                for mine, theirs in zip(average.buffers(), source.buffers(), strict=True):
                    mine.copy_(theirs)

    def _checkpoint(self, done: int) -> None:
        tensors = {}
        for kind, modules in (("module", self.modules), ("average", self.averages)):
            for name, module in modules.items():
                tensors |= {
                    f"{kind}.{name}.{key}": value.contiguous() for key, value in module.state_dict().items()
                }
        for name, optimiser in self.optimisers.items():
            for index, state in optimiser.state_dict()["state"].items():
                tensors |= {
                    f"optimiser.{name}.{index}.{key}": torch.as_tensor(value).contiguous()
                    for key, value in state.items()
                }
        path = write_bytes(self.folder / "checkpoint.safetensors", save(to_device(tensors, "cpu")))
        # The record comes last: weights without it are an unfinished write.
        write_json(
            self.folder / "checkpoint.json", {"done": done, "history": self.history, "sha256": sha256(path)}
        )

    def _resume(self) -> int:
        record, path = self.folder / "checkpoint.json", self.folder / "checkpoint.safetensors"
        if not record.exists() or not path.exists():
            return 0
        facts: dict[str, Any] = json.loads(record.read_text())
        if facts["sha256"] != sha256(path):  # killed between the two writes
            return 0
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        for kind, modules in (("module", self.modules), ("average", self.averages)):
            for name, module in modules.items():
                prefix = f"{kind}.{name}."
                module.load_state_dict(
                    {
                        key.removeprefix(prefix): value
                        for key, value in tensors.items()
                        if key.startswith(prefix)
                    }
                )
        for name, optimiser in self.optimisers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimiser.{name}."):
                    index, entry = key.removeprefix(f"optimiser.{name}.").split(".", 1)
                    state.setdefault(int(index), {})[entry] = value
            optimiser.load_state_dict(
                {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
            )
        self.history[:] = facts["history"]
        return int(facts["done"])


def update(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of `optimiser` on `loss`; gradients that are not finite become 0 or +-1e5, as the official loop does (facts 4.1)."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                torch.nan_to_num_(parameter.grad, nan=0.0, posinf=1e5, neginf=-1e5)
    optimiser.step()
