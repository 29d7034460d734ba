"""How far training has moved each group of layers.

What does not move does not learn, however good the losses are.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

LEAST = 1e-3  # of its size, that a group has moved at least if it learns


class Moves:
    """Remembers the weights of `modules` that `optimisers` train, as they are when it is made."""

    def __init__(self, modules: Mapping[str, nn.Module], optimisers: Iterable[torch.optim.Optimizer]) -> None:
        owners: dict[nn.Parameter, torch.optim.Optimizer] = {}
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                owners |= dict.fromkeys(group["params"], optimiser)
        self.groups: dict[str, list[tuple[Tensor, nn.Parameter]]] = {}
        self.owner: dict[str, torch.optim.Optimizer] = {}
        for module, network in modules.items():
            for name, parameter in network.named_parameters():
                # Biases and other vectors do not count: they are small, and move whatever else happens.
                if parameter not in owners or parameter.ndim < 2:
                    continue
                group = f"{module}.{_group(name)}"
                start = parameter.detach().cpu().clone()
                self.groups.setdefault(group, []).append((start, parameter))
                self.owner[group] = owners[parameter]

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """How far each group is from its first weights, over the length of the longer of the two.

        Layers of one kind are one group: `trans_blocks.0.attn.q` and `trans_blocks.1.attn.q` are
        `trans_blocks.attn.q`. What belongs to an optimiser that has made no step yet is left out.
        """
        moved = {}
        for group, pairs in self.groups.items():
            if not self.owner[group].state:
                continue
            starts = [start for start, _ in pairs]
            ends = [parameter.cpu() for _, parameter in pairs]
            way = [end - start for start, end in zip(starts, ends, strict=True)]
            # The longer one, so that what starts from nothing has moved by one and not by infinity.
            size = max(_length(starts), _length(ends))
            moved[group] = _length(way) / size if size else 0.0
        return moved

    @staticmethod
    def still(moved: Mapping[str, float]) -> list[str]:
        """The groups that have not moved, by name, for all that could be measured."""
        return sorted(name for name, share in moved.items() if share < LEAST)


def _group(name: str) -> str:
    return re.sub(r"\.\d+(?=\.)", "", name).removesuffix(".weight")


def _length(tensors: list[Tensor]) -> float:
    squares = [tensor.double().square().sum() for tensor in tensors]
    return float(torch.stack(squares).sum().sqrt())
