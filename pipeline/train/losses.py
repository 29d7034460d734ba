"""The losses of Eq. 2 and Eq. 5, with the domains of facts 4.2.

Images are in [-1, 1], opacity in [0, 1]. Each loss is one number a sample, (B,), where not said otherwise.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def per_sample(value: Tensor) -> Tensor:
    """The mean over all but the first axis, shape (B,)."""
    return value.flatten(1).mean(1)


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference (L_1)."""
    return per_sample((prediction - target).abs())


def weighted_l1(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean absolute difference, each pixel times `weight` (B, 1, H, W)."""
    return per_sample((prediction - target).abs() * weight)


def masked_l1(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference inside `mask` (B, 1, H, W), which may be empty."""
    weight = mask.expand_as(prediction)
    difference = (prediction - target).abs() * weight
    total = difference.flatten(1).sum(1)
    # An empty mask has no difference, and is none.
    count = weight.flatten(1).sum(1).clamp_min(1.0)
    return total / count


def opacity_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """L_opa: L1 between opacities brought to [-1, 1], as the official code has it."""
    return 2.0 * l1(prediction, target)


def depth_l1(prediction: Tensor, target: Tensor, opacity: Tensor) -> Tensor:
    """L_depth: L1 of the distance along the ray where the target is foreground.

    The far background has no depth.
    """
    mask = (opacity > 0.5) & torch.isfinite(target)
    # Infinity times the mask's zero would be no number, in the gradient as well.
    known = torch.where(mask, target, prediction.detach())
    return masked_l1(prediction, known, mask.to(prediction.dtype))


def flow_error(
    flow_B2SS: Tensor,
    places_BN2: Tensor,
    wanted_BN2: Tensor,
    weight_N: Tensor,
) -> Tensor:
    """How far a flow is from what is wanted at places of a picture, percent of its side times `weight_N`.

    All others are in fractions of the picture. Not one of the paper's losses.
    """
    found_B2N = F.grid_sample(flow_B2SS, 2 * places_BN2[:, None] - 1, align_corners=False)[:, :, 0]
    return 100 * weighted_l1(found_B2N.mT, wanted_BN2, weight_N[:, None])


def identity_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """L_id: 1 - cosine of face recognition features (B, E)."""
    return 1.0 - F.cosine_similarity(prediction, target)


def over_black(image: Tensor, opacity: Tensor) -> Tensor:
    """The foreground alone, over black (-1). `opacity` is resized to the image."""
    if opacity.shape[-1] != image.shape[-1]:
        size = image.shape[-2:]
        opacity = F.interpolate(opacity, size=size, mode="bilinear", align_corners=False)
    return (image + 1.0) * opacity - 1.0


def generator_adversarial(logits: Tensor) -> Tensor:
    """L_adv for the synthesizer: softplus(-D), shape (B,)."""
    return F.softplus(-logits).flatten(1).mean(1)


def discriminator_adversarial(fake: Tensor, real: Tensor) -> Tensor:
    """The discriminator's non-saturating logistic loss, a scalar."""
    called_real = F.softplus(fake)
    called_fake = F.softplus(-real)
    return called_real.mean() + called_fake.mean()


def r1_penalty(logits: Tensor, inputs: dict[str, tuple[Tensor, float]]) -> Tensor:
    """R1: half the weighted squared gradient norm of D at real inputs, a scalar (facts 4.5).

    `inputs` maps names to a tensor that requires grad and its gamma.
    """
    tensors = [tensor for tensor, _ in inputs.values()]
    gradients = torch.autograd.grad(logits.sum(), tensors, create_graph=True)
    penalties = []
    for gradient, (_, gamma) in zip(gradients, inputs.values(), strict=True):
        squares = gradient.square().flatten(1).sum(1)
        penalties.append((0.5 * gamma * squares).mean())
    return sum(penalties)
