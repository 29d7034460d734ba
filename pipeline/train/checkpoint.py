"""The state of a training on disk, so that a killed run goes on with the same bits.

`checkpoint.safetensors` has the weights, their averages and the state of the optimisers; the JSON beside
it the number of finished steps, the history and the checksum.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.core.device import to_device
from pipeline.core.errors import UserError
from pipeline.store.sealed import check_sealed, recover, remove_sealed, write_sealed
from pipeline.train.task import Task

History = list[dict[str, float]]


class Checkpoint:
    """The checkpoint of one run. `folder` is a scratch folder, named after all that the run depends on."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "checkpoint.safetensors"

    def save(self, done: int, task: Task, history: History) -> None:
        """Replace the checkpoint by the state after `done` steps."""
        tensors = _optimiser_tensors(task.optimisers)
        for prefix, network in _networks(task).items():
            for key, value in network.state_dict().items():
                tensors[f"{prefix}{key}"] = value.contiguous()
        facts = {"done": done, "history": history}
        write_sealed(self.path, save(to_device(tensors, "cpu")), facts)

    def load(self, task: Task) -> tuple[int, History]:
        """Bring `task` to the saved state; returns the number of finished steps and the history.

        Where there is no whole checkpoint, `task` stays as it is and both are empty.
        """
        recover(self.path)
        try:
            facts = check_sealed(self.path)
        except UserError:
            return 0, []
        with safe_open(self.path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        for prefix, network in _networks(task).items():
            network.load_state_dict(_below(prefix, tensors))
        for name, optimiser in task.optimisers.items():
            _load_optimiser(optimiser, _below(f"optimiser.{name}.", tensors))
        return facts["done"], facts["history"]

    def remove(self) -> None:
        """Forget the state, once the results stand where they belong."""
        remove_sealed(self.path)


def _networks(task: Task) -> dict[str, nn.Module]:
    """All networks with what their tensors' names begin with."""
    networks = {f"module.{name}.": network for name, network in task.networks.items()}
    averages = {f"average.{name}.": network for name, network in task.averages.items()}
    return networks | averages


def _optimiser_tensors(optimisers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The state of each parameter, named `optimiser.<name>.<number of the parameter>.<key>`."""
    tensors: dict[str, Tensor] = {}
    for name, optimiser in optimisers.items():
        parameters = optimiser.state_dict()["state"]
        for index, state in parameters.items():
            for key, value in state.items():
                tensor = torch.as_tensor(value)
                tensors[f"optimiser.{name}.{index}.{key}"] = tensor.contiguous()
    return tensors


def _load_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Undo `_optimiser_tensors`. Rates and other constants of the groups stay as they are."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    below = {}
    for key, value in tensors.items():
        if key.startswith(prefix):
            below[key.removeprefix(prefix)] = value
    return below
