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
    """What a rendering is compared with; B samples, S the image size, n the size of volume rendering.

    `weight` says how much a pixel counts in L_1: one, as published, or more where a face moves.
    """

    image: Tensor  # (B, 3, S, S) in [-1, 1]
    opacity: Tensor  # (B, 1, n, n) in [0, 1]
    background: Tensor  # (B, 3, n, n) in [-1, 1]
    background_mask: Tensor  # (B, 1, n, n), where `background` is known
    five_points: Tensor  # (B, 5, 2) fractions
    camera: Tensor  # (B, 25)
    uv: Tensor  # (B, 3, S, S): where on the canonical head a pixel lies (facts 2.8)
    weight: Tensor  # (B, 1, S, S)


def image_terms(
    rendering: Rendering,
    target: Target,
    judges: Judges,
) -> dict[str, Tensor]:
    """L_1, L_LPIPS and L_opa of each sample, (B,).

    They are taken on the final image, the raw image, the foreground over black and the background, as
    facts 4.2 say.
    """
    size = rendering.raw.shape[-1]
    raw, weight = shrink(target.image, size), shrink(target.weight, size)
    foreground = losses.over_black(raw, target.opacity)
    drawn_behind = losses.over_black(rendering.background, target.background_mask)
    behind = losses.over_black(target.background, target.background_mask)
    pairs = [
        (rendering.image, target.image, target.weight),
        (rendering.raw, raw, weight),
        (rendering.foreground, foreground, weight),
        (drawn_behind, behind, torch.ones_like(weight)),
    ]
    return {
        "l1": sum(losses.weighted_l1(drawn, wanted, weight) for drawn, wanted, weight in pairs),
        "lpips": sum(judges.lpips(drawn, wanted) for drawn, wanted, _ in pairs),
        "opacity": losses.opacity_l1(rendering.opacity, target.opacity),
    }


def sparse_terms(
    rendering: Rendering,
    target: Target,
    sparse: SparseRays,
) -> dict[str, Tensor]:
    """L_1 and L_opa of each sample, (B,), in a sparse step.

    The raw image counts twice, as the final one is not made.
    """
    size = target.opacity.shape[-1]
    raw, weight = sparse(shrink(target.image, size)), sparse(shrink(target.weight, size))
    opacity, known = sparse(target.opacity), sparse(target.background_mask)
    foreground = losses.over_black(raw, opacity)
    drawn_behind = losses.over_black(rendering.background, known)
    behind = losses.l1(drawn_behind, losses.over_black(sparse(target.background), known))
    in_front = 2 * losses.weighted_l1(rendering.raw, raw, weight)
    in_front = in_front + losses.weighted_l1(rendering.foreground, foreground, weight)
    return {"l1": in_front + behind, "opacity": losses.opacity_l1(rendering.opacity, opacity)}


def identity_term(rendering: Rendering, target: Target, judges: Judges) -> Tensor:
    """L_id of each sample, (B,)."""
    with torch.no_grad():
        wanted = judges.identity(target.image, target.five_points)
    found = judges.identity(rendering.image, target.five_points)
    return losses.identity_distance(found, wanted)


def thickness_term(rendering: Rendering) -> Tensor:
    """How far, on average, what a ray of each sample meets lies from the ray's depth, (B,).

    Fog smears the source features that are projected into it. Not one of the paper's losses.
    """
    return rendering.thickness.mean((1, 2, 3))


def shrink(image_BCHW: Tensor, size: int) -> Tensor:
    """Antialiased bilinear resize to the resolution of volume rendering."""
    return F.interpolate(
        image_BCHW,
        size=(size, size),
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )
