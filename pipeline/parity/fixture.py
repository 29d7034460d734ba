"""A parity fixture as a case sees it, and what cases have in common."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.sizes import Sizes
from pipeline.parity.file import Stored
from pipeline.parity.numbers import NumberRule

PAPER = Sizes()

Found = Tensor | np.ndarray | str  # a text says which file of others the array cannot be made without


@dataclass
class Fixture:
    """A fixture as it was read. A case asks it for what is stored because no rule makes it."""

    folder: Path
    arrays: dict[str, Stored]
    inputs: set[str] = field(default_factory=set)  # names of the arrays that were asked for as such

    def given(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A stored input with a batch of one in front, float32.

        Raises ValueError when it is missing or has another shape.
        """
        values = np.zeros(0)
        if name in self.arrays:
            values = self.arrays[name].values
        fits = values.shape == shape and values.dtype.kind == "f"
        if not fits or not np.isfinite(values).all():
            expected = f"no array {shape} of finite floats"
            raise ValueError(f"the input {name} is missing or is {expected}, so that nothing can be compared")
        self.inputs.add(name)
        single = values.astype(np.float32)
        return torch.from_numpy(single)[None]


ParityCase = Callable[[NumberRule, Fixture], dict[str, Found]]


@contextmanager
def recorded(**modules: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collects the last output of each module, by name, while it is entered."""
    seen: dict[str, Tensor] = {}

    def record(
        name: str,
        _module: nn.Module,
        _inputs: tuple,
        output: Tensor,
    ) -> None:
        seen[name] = output.detach()

    hooks = []
    for name, module in modules.items():
        hook = module.register_forward_hook(partial(record, name))
        hooks.append(hook)
    # A hook that stayed would keep the output of every later forward.
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def statistics(image_XHW: Tensor) -> Tensor:
    """Mean, population deviation and absolute maximum of each channel, (..., 3), in double precision."""
    x = image_XHW.double().flatten(-2)
    mean = x.mean(-1)
    deviation = x.std(-1, correction=0)
    largest = x.abs().amax(-1)
    return torch.stack([mean, deviation, largest], -1)
