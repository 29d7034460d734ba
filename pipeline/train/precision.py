"""The number types of training.

In float32 everything is computed as it is stored. tf32 lets a GPU round the factors of products to 10 bits
behind the point. In bfloat16 the networks compute by autocast, and what goes into them and comes out of
them is float32: weights, optimisers, rays, compositing, sums of losses and R1 never see a short number.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from model.psi.network import Psi
from pipeline.networks.judges import Judges


def allow_tf32(allowed: bool) -> None:
    """Whether a GPU may shorten the factors of products and convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def use_bfloat16(psi: Psi, judges: Judges) -> None:
    """From now on these networks compute in bfloat16.

    Copies that are to stay float32 are made before: a later one would call the parts of the original.
    """
    # The decoder of points is left out: it makes densities, whose exponential is the light along a ray.
    parts = [psi.encoder_global, psi.encoder_detail, psi.encoder_canonical, psi.generator_triplane]
    parts += [psi.background, psi.superresolution, judges.identity_net, judges.trunk.lpips.net]
    for part in parts:
        part.forward = partial(_in_bfloat16, part.forward)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """A context in which networks compute in `precision`."""
    if precision != "bfloat16":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _in_bfloat16(forward: Callable[..., Any], x: Tensor, *others: Any, **named: Any) -> Any:
    with autocast("bfloat16", x.device):
        return _float32(forward(x, *others, **named))


def _float32(value: Any) -> Any:
    """A tensor, or each of several, as float32."""
    return value.float() if isinstance(value, Tensor) else [each.float() for each in value]
