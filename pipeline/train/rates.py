"""How fast each group of parameters of Psi and Psi_3d learns."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from model.psi.network import EQUALISED, Psi, is_motion
from pipeline.config.params import Training

BETAS = (0.9, 0.999)


def synthesizer_optimiser(
    psi: Psi,
    section: Training,
    motion_scale: float = 0.0,
) -> torch.optim.Adam:
    """Adam on the weights of `psi`.

    Its motion layers (facts 1.8) learn `motion_scale` times as fast, and not at all when it is 0. The weights
    of layers with equalised learning rate learn `equalised_learning_rate_scale` times as fast: they have
    deviation 1, those of a plain layer less than a tenth. Adam's steps are of one size for all, so that the
    former would move ten times less for their size.
    """
    equalised, other, motion = [], [], []
    for name, parameter in psi.named_parameters():
        kind = motion if is_motion(name) else equalised if _is_equalised(name) else other
        kind.append(parameter)
    # What is in no group does not learn, though it gets gradients.
    scaled = [(other, 1.0), (equalised, section.equalised_learning_rate_scale)]
    if motion_scale:
        scaled.append((motion, motion_scale))
    return adam(scaled, section)


def adam(scaled: Iterable[tuple[Iterable[nn.Parameter], float]], section: Training) -> torch.optim.Adam:
    """Adam on groups of parameters, each with a factor of the learning rate of `section`."""
    groups: list[dict[str, Any]] = []
    for parameters, scale in scaled:
        groups.append({"params": list(parameters), "lr": section.learning_rate * scale})
    # Fused: one pass over the weights in place of a dozen, a fifth of the time.
    return torch.optim.Adam(groups, betas=BETAS, eps=section.adam_eps, fused=True)


def _is_equalised(name: str) -> bool:
    # Layers that read the style are fast enough: with a constant style all weights of a row go the same way.
    return name.startswith(EQUALISED) and name.endswith(".weight") and ".affine." not in name
