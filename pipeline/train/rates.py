"""Who learns how fast: the groups of parameters that Psi and Psi_3d are trained in."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from model.psi.network import EQUALISED, Psi, is_motion
from pipeline.config.params import Training

BETAS = (0.9, 0.999)


def synthesizer_optimiser(psi: Psi, section: Training, motion_scale: float = 0.0) -> torch.optim.Adam:
    """Adam on the weights of `psi`; its motion layers (facts 1.8) learn `motion_scale` times as fast, and not at all when it is 0.

    A layer with equalised learning rate has weights of deviation 1, a plain one of less than a tenth. Adam's steps are of one size for all,
    so that the former move ten times less for their size, unless `equalised_learning_rate_scale` makes up for it. Not for the layers that
    read the style: with a constant style all weights of a row go the same way, and together fast enough.
    """
    equalised, other, motion = [], [], []
    for name, parameter in psi.named_parameters():
        kind = motion if is_motion(name) else equalised if _is_equalised(name) else other
        kind.append(parameter)
    scaled = [(other, 1.0), (equalised, section.equalised_learning_rate_scale)] + (
        [(motion, motion_scale)] if motion_scale else []
    )
    return adam(scaled, section)


def adam(scaled: Iterable[tuple[Iterable[nn.Parameter], float]], section: Training) -> torch.optim.Adam:
    """Adam with the constants of `section` on groups of parameters, each with a factor of the learning rate."""
    groups: list[dict[str, Any]] = [
        {"params": list(parameters), "lr": section.learning_rate * scale} for parameters, scale in scaled
    ]
    return torch.optim.Adam(groups, betas=BETAS, eps=section.adam_eps)


def _is_equalised(name: str) -> bool:
    return name.startswith(EQUALISED) and name.endswith(".weight") and ".affine." not in name
