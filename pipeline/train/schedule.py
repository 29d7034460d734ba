"""Learning rates over a run."""

import math

import torch


def set_rates(
    optimiser: torch.optim.Optimizer,
    images: int,
    warmup: int,
    decay_until: int,
) -> None:
    """Let the rates rise over the first `warmup` images and fall to nothing at `decay_until` (0: never).

    They rise linearly and fall by half a cosine. The networks have no normalisation layers: full steps
    at the very start can make a small one transparent, from where there is no gradient back. Small
    batches are noisy: what a short run has learnt only settles when the steps get small.
    """
    rise = min(1.0, (images + 1) / (warmup + 1))
    fall = half_cosine(images / decay_until) if decay_until else 1.0
    # The first call finds the full rates, later ones the rates of the step before.
    for group in optimiser.param_groups:
        group["lr"] = group.setdefault("full_lr", group["lr"]) * rise * fall


def half_cosine(share: float) -> float:
    """From 1 at the start of a run to 0 when its `share` is 1, and from there on."""
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))
