"""What Psi and Psi_3d are trained against: the image terms that Eq. 2 and Eq. 5 share."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model.volume.renderer import Rendering
from pipeline.networks.judges import Judges
from pipeline.train import losses
from pipeline.train.sparse_rays import SparseRays


@dataclass(frozen=True)
class Target:
    """What a rendering is compared with; B samples, S the image size, n the size of volume rendering."""

    image: Tensor  # (B, 3, S, S) in [-1, 1]
    opacity: Tensor  # (B, 1, n, n) in [0, 1]
    background: Tensor  # (B, 3, n, n) in [-1, 1]
    background_mask: Tensor  # (B, 1, n, n), where `background` is known
    five_points: Tensor  # (B, 5, 2) fractions
    camera: Tensor  # (B, 25)
    uv: Tensor  # (B, 3, S, S): where on the canonical head a pixel lies (facts 2.8)
    weight: (
        Tensor  # (B, 1, S, S): how much a pixel counts in L_1; ones, as published, or more where a face moves
    )


def image_terms(rendering: Rendering, target: Target, judges: Judges) -> dict[str, Tensor]:
    """L_1, L_LPIPS and L_opa of each sample, (B,): on the final image, the raw image, the foreground over black and the background (facts 4.2)."""
    raw, weight = (
        shrink(target.image, rendering.raw.shape[-1]),
        shrink(target.weight, rendering.raw.shape[-1]),
    )
    pairs = [
        (rendering.image, target.image),
        (rendering.raw, raw),
        (rendering.foreground, losses.over_black(raw, target.opacity)),
        (
            losses.over_black(rendering.background, target.background_mask),
            losses.over_black(target.background, target.background_mask),
        ),
    ]
    weights = (target.weight, weight, weight, torch.ones_like(weight))
    return {
        "l1": sum(losses.weighted_l1(a, b, w) for (a, b), w in zip(pairs, weights, strict=True)),
        "lpips": sum(judges.lpips(a, b) for a, b in pairs),
        "opacity": losses.opacity_l1(rendering.opacity, target.opacity),
    }


def sparse_terms(rendering: Rendering, target: Target, sparse: SparseRays) -> dict[str, Tensor]:
    """L_1 and L_opa of each sample, (B,), in a sparse step; the raw image counts for the final one, too, which is not made."""
    rays = target.opacity.shape[-1]
    raw, weight = sparse(shrink(target.image, rays)), sparse(shrink(target.weight, rays))
    opacity, known = sparse(target.opacity), sparse(target.background_mask)
    background = losses.l1(
        losses.over_black(rendering.background, known), losses.over_black(sparse(target.background), known)
    )
    return {
        "l1": 2 * losses.weighted_l1(rendering.raw, raw, weight)
        + losses.weighted_l1(rendering.foreground, losses.over_black(raw, opacity), weight)
        + background,
        "opacity": losses.opacity_l1(rendering.opacity, opacity),
    }


def identity_term(rendering: Rendering, target: Target, judges: Judges) -> Tensor:
    """L_id of each sample, (B,)."""
    with torch.no_grad():
        wanted = judges.identity(target.image, target.five_points)
    return losses.identity_distance(judges.identity(rendering.image, target.five_points), wanted)


def shrink(image_BCHW: Tensor, size: int) -> Tensor:
    """Antialiased bilinear resize to the resolution of volume rendering."""
    return F.interpolate(image_BCHW, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
