"""The device that the networks live on, how it computes, and bringing data to it.

Random numbers are drawn on the CPU and then moved, so that draws repeat on any device.
"""

import dataclasses
from typing import TypeVar

import torch
from torch import Tensor

from pipeline.core.errors import UserError

Value = TypeVar("Value")


def choose_device(name: str) -> torch.device:
    """The device that machine.device names: auto is the GPU where there is one.

    Raises UserError for cuda where there is none.
    """
    # A GPU that was asked for and is not there is refused, as on the CPU the published sizes would take
    # years.
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        advice = "Set it to auto or cpu in params.yaml, or look into the driver."
        raise UserError(f"machine.device is cuda, but PyTorch finds no GPU here. {advice}")
    if name == "auto":
        name = "cuda" if available else "cpu"
    return torch.device(name)


def set_deterministic(deterministic: bool) -> None:
    """Let PyTorch take only kernels that repeat their bits, or any.

    Memory that nothing has written yet stays as it is: filling it would cost time and hide nothing here.
    """
    # `use_deterministic_algorithms` does the same, and loads PyTorch's compiler: two seconds in each process.
    torch.set_deterministic_debug_mode("error" if deterministic else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyrefly: ignore[missing-attribute]


def to_device(value: Value, device: torch.device | str) -> Value:
    """The same with every tensor on `device`.

    A value is a tensor, or a tuple, dict or dataclass of values. Anything else stays as it is.
    """
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(to_device(item, device) for item in value)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(
            value,
            **{
                field.name: to_device(getattr(value, field.name), device)
                for field in dataclasses.fields(value)
            },
        )
    return value
