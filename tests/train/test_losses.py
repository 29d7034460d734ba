"""Hand-made cases of every loss term."""

import math

import pytest
import torch

from pipeline.train import losses


def test_l1_is_a_mean_for_each_sample():
    a, b = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    b[1] = 3.0
    assert losses.l1(a, b).tolist() == [1.0, 3.0]


def test_masked_l1_counts_inside_only():
    a, b, mask = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)
    b[..., 0, 0], b[..., 1, 1], mask[..., 0, 0] = 2.0, 9.0, 1.0
    assert losses.masked_l1(a, b, mask).item() == 2.0
    assert losses.masked_l1(a, b, torch.zeros_like(mask)).item() == 0.0


def test_depth_ignores_background_and_infinity():
    depth = torch.full((1, 1, 2, 2), 4.0, requires_grad=True)
    target = torch.tensor([[[[4.5, math.inf], [4.0, 100.0]]]])
    opacity = torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]]])
    value = losses.depth_l1(depth, target, opacity)
    assert value.item() == pytest.approx(0.25)
    value.sum().backward()
    assert torch.isfinite(depth.grad).all()


def test_opacity_is_compared_in_the_official_range():
    assert losses.opacity_l1(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).item() == 2.0


def test_identity_distance_is_one_minus_cosine():
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    b = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert losses.identity_distance(a, b).tolist() == pytest.approx([0.0, 1.0, 2.0])


def test_over_black_keeps_the_foreground():
    image = torch.full((1, 3, 4, 4), 0.5)
    opacity = torch.zeros(1, 1, 2, 2)
    assert torch.equal(losses.over_black(image, opacity), torch.full((1, 3, 4, 4), -1.0))
    assert torch.allclose(losses.over_black(image, torch.ones(1, 1, 4, 4)), image)


def test_adversarial_losses():
    assert losses.generator_adversarial(torch.zeros(2, 1)).tolist() == pytest.approx([math.log(2)] * 2)
    assert losses.discriminator_adversarial(torch.zeros(2, 1), torch.zeros(2, 1)).item() == pytest.approx(
        2 * math.log(2)
    )


def test_r1_is_half_gamma_times_the_squared_gradient():
    x = torch.ones(2, 3, requires_grad=True)
    logits = (x * torch.tensor([1.0, 2.0, 2.0])).sum(1)  # gradient norm 3
    assert losses.r1_penalty(logits, {"image": (x, 10.0)}).item() == pytest.approx(0.5 * 10.0 * 9.0)
