"""The discriminator's loss comes in parts that add up to that of the whole batch."""

import pytest
import torch
from torch import Tensor

from model.adversary.discriminator import Discriminator
from model.volume.renderer import Rendering
from pipeline.train.adversary import R1_EVERY, R1_GAMMA, Adversary
from pipeline.train.image_terms import Target, shrink
from pipeline.train.losses import discriminator_adversarial, r1_penalty
from tests.support.sizes import SMOKE_SIZES
from tests.support.small_run import params

SECTION = params().train
SHARE = 0.25


def pictures(count: int) -> tuple[Rendering, Target]:
    """Noise in place of what is drawn and of what is real."""
    generator = torch.Generator().manual_seed(count)
    side, rays = SMOKE_SIZES.image, SMOKE_SIZES.rays

    def draw(channels: int, size: int) -> Tensor:
        return torch.rand(count, channels, size, size, generator=generator)

    image, raw, opacity = draw(3, side), draw(3, rays), draw(1, rays)
    rendering = Rendering(image, raw, raw, raw, opacity, opacity, opacity, raw)
    five_points = torch.zeros(count, 5, 2)
    camera = torch.randn(count, 25, generator=generator)
    weight = torch.ones(count, 1, side, side)
    target = Target(
        draw(3, side),
        draw(1, rays),
        raw,
        opacity,
        five_points,
        camera,
        draw(3, side),
        weight,
    )
    return rendering, target


def whole(network: Discriminator, rendering: Rendering, target: Target, regular: bool) -> Tensor:
    """The loss of all samples in one graph."""
    real = {
        "image": target.image,
        "raw": shrink(target.image, SMOKE_SIZES.rays),
        "opacity": target.opacity,
        "uv": target.uv,
    }
    real = {name: value.requires_grad_(True) for name, value in real.items()}
    fake = network(rendering.image, rendering.raw, rendering.opacity, target.uv, target.camera)
    judged = network(*real.values(), target.camera)
    total = discriminator_adversarial(fake, judged)
    if regular:
        gammas = {name: (value, R1_GAMMA[name]) for name, value in real.items()}
        total = total + R1_EVERY * r1_penalty(judged, gammas)
    return SHARE * total


# Five samples make a group of three and one of two.
@pytest.mark.parametrize("count", [1, 2, 4, 5])
@pytest.mark.parametrize("step", [0, 1])
def test_the_parts_add_up_to_the_loss_of_the_batch(count: int, step: int) -> None:
    torch.manual_seed(0)
    adversary = Adversary(Discriminator(SMOKE_SIZES), SECTION)
    parameters = list(adversary.network.parameters())
    parts = []
    for loss in adversary.losses(step, *pictures(count), SHARE):
        loss.total.backward()
        parts.append(float(loss.total.detach()))
    assert len(parts) == max(count // SMOKE_SIZES.discriminator.group, 1)
    found = [parameter.grad for parameter in parameters]
    total = whole(adversary.network, *pictures(count), regular=step == 0)
    assert sum(parts) == pytest.approx(float(total.detach()), rel=1e-5)
    wanted = torch.autograd.grad(total, parameters, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))
