"""What an evaluation adds up piece by piece, in a form that a file can hold."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Columns = dict[str, np.ndarray]


class Sums(Protocol):
    """Something that grows with every piece, and can be brought back from what it was."""

    def tensors(self) -> Tensors:
        """All that it knows."""
        ...

    def restore(self, tensors: Tensors) -> None:
        """Be what `tensors()` was of."""
        ...


class Together:
    """Several sums, by name, as one."""

    def __init__(self, **sums: Sums) -> None:
        self.sums = sums

    def tensors(self) -> Tensors:
        """Those of all of them, as `name/what they call it`."""
        return {
            f"{name}/{key}": tensor
            for name, sums in self.sums.items()
            for key, tensor in sums.tensors().items()
        }

    def restore(self, tensors: Tensors) -> None:
        for name, sums in self.sums.items():
            start = f"{name}/"
            mine = {key: tensor for key, tensor in tensors.items() if key.startswith(start)}
            sums.restore({key.removeprefix(start): tensor for key, tensor in mine.items()})


class Table:
    """Numbers of pictures by name, the rows of a piece after those of the one before."""

    def __init__(self) -> None:
        self.parts: dict[str, list[np.ndarray]] = {}

    def add(self, columns: Mapping[str, np.ndarray]) -> None:
        """Take the rows of one more piece."""
        for name, values in columns.items():
            self.parts.setdefault(name, []).append(values)

    @property
    def columns(self) -> Columns:
        """All rows, (N,) by name, in the order in which the names first came."""
        return {name: np.concatenate(parts) for name, parts in self.parts.items()}

    def tensors(self) -> Tensors:
        """The columns. Their names begin with their number, as a file does not keep an order."""
        numbered = enumerate(self.columns.items())
        return {f"{number:03d}/{name}": torch.from_numpy(values) for number, (name, values) in numbered}

    def restore(self, tensors: Tensors) -> None:
        self.parts = {}
        for key in sorted(tensors):
            _, _, name = key.partition("/")
            self.parts[name] = [tensors[key].numpy()]
