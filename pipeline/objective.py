"""What Psi and Psi_3d are trained against: the image terms that Eq. 2 and Eq. 5 share, and the adversary."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model import losses
from model.discriminator import Discriminator
from model.renderer import Rendering
from pipeline.params import Training
from pipeline.perception import Perception
from pipeline.rates import adam
from pipeline.thin import Thin
from pipeline.trainer import update

R1_EVERY = 16  # lazy regularisation (facts 4.1)
R1_GAMMA = {"image": 1.0, "raw": 1.0, "uv": 10.0, "opacity": 0.25}  # facts 4.5; opacity in [0, 1] has twice the official gradient


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
    weight: Tensor  # (B, 1, S, S): how much a pixel counts in L_1; ones, as published, or more where a face moves


def image_terms(rendering: Rendering, target: Target, perception: Perception) -> dict[str, Tensor]:
    """L_1, L_LPIPS and L_opa of each sample, (B,): on the final image, the raw image, the foreground over black and the background (facts 4.2)."""
    raw, weight = shrink(target.image, rendering.raw.shape[-1]), shrink(target.weight, rendering.raw.shape[-1])
    pairs = [
        (rendering.image, target.image),
        (rendering.raw, raw),
        (rendering.foreground, losses.over_black(raw, target.opacity)),
        (losses.over_black(rendering.background, target.background_mask), losses.over_black(target.background, target.background_mask)),
    ]
    weights = (target.weight, weight, weight, torch.ones_like(weight))
    return {
        "l1": sum(losses.weighted_l1(a, b, w) for (a, b), w in zip(pairs, weights, strict=True)),
        "lpips": sum(perception.lpips(a, b) for a, b in pairs),
        "opacity": losses.opacity_l1(rendering.opacity, target.opacity),
    }


def thin_terms(rendering: Rendering, target: Target, thin: Thin) -> dict[str, Tensor]:
    """L_1 and L_opa of each sample, (B,), in a thin step; the raw image counts for the final one, too, which is not made."""
    rays = target.opacity.shape[-1]
    raw, weight = thin(shrink(target.image, rays)), thin(shrink(target.weight, rays))
    opacity, known = thin(target.opacity), thin(target.background_mask)
    background = losses.l1(losses.over_black(rendering.background, known), losses.over_black(thin(target.background), known))
    return {
        "l1": 2 * losses.weighted_l1(rendering.raw, raw, weight)
        + losses.weighted_l1(rendering.foreground, losses.over_black(raw, opacity), weight)
        + background,
        "opacity": losses.opacity_l1(rendering.opacity, opacity),
    }


def identity_term(rendering: Rendering, target: Target, perception: Perception) -> Tensor:
    """L_id of each sample, (B,)."""
    with torch.no_grad():
        wanted = perception.identity(target.image, target.five_points)
    return losses.identity_distance(perception.identity(rendering.image, target.five_points), wanted)


def shrink(image_BCHW: Tensor, size: int) -> Tensor:
    """Antialiased bilinear resize to the resolution of volume rendering."""
    return F.interpolate(image_BCHW, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


class Adversary:
    """L_adv of Eq. 2 and 5: the dual discriminator of facts 4.5 and its own training."""

    def __init__(self, discriminator: Discriminator, section: Training) -> None:
        self.network = discriminator
        self.optimiser = adam([(discriminator.parameters(), 1.0)], section)

    def term(self, rendering: Rendering, target: Target) -> Tensor:
        """The loss of the synthesizer, (B,)."""
        self.network.requires_grad_(False)
        logits = self.network(rendering.image, rendering.raw, rendering.opacity, target.uv, target.camera)
        self.network.requires_grad_(True)
        return losses.generator_adversarial(logits)

    def train(self, step: int, rendering: Rendering, target: Target) -> dict[str, Tensor]:
        """One step of the discriminator on the same samples, with R1 every 16 steps (times 16); returns its scalars."""
        real = {
            "image": target.image,
            "raw": shrink(target.image, rendering.raw.shape[-1]),
            "opacity": target.opacity,
            "uv": target.uv,
        }
        regular = step % R1_EVERY == 0
        if regular:
            real = {name: value.detach().requires_grad_(True) for name, value in real.items()}
        fake = self.network(rendering.image.detach(), rendering.raw.detach(), rendering.opacity.detach(), target.uv, target.camera)
        judged = self.network(real["image"], real["raw"], real["opacity"], real["uv"], target.camera)
        loss = losses.discriminator_adversarial(fake, judged)
        scalars = {"discriminator": loss.detach()}
        if regular:
            penalty = losses.r1_penalty(judged, {name: (value, R1_GAMMA[name]) for name, value in real.items()})
            loss = loss + R1_EVERY * penalty
        update(self.optimiser, loss)
        return scalars
