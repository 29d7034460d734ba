"""Hand-made cases of every loss term."""

import math

import pytest
import torch

from pipeline.train import losses


def test_l1_is_a_mean_for_each_sample():
    prediction = torch.zeros(2, 3, 4, 4)
    target = torch.ones(2, 3, 4, 4)
    target[1] = 3.0
    assert losses.l1(prediction, target).tolist() == [1.0, 3.0]


def test_masked_l1_counts_inside_only():
    prediction = torch.zeros(1, 3, 2, 2)
    target = torch.zeros(1, 3, 2, 2)
    target[..., 0, 0] = 2.0
    target[..., 1, 1] = 9.0
    mask = torch.zeros(1, 1, 2, 2)
    mask[..., 0, 0] = 1.0
    assert losses.masked_l1(prediction, target, mask).item() == 2.0
    nowhere = torch.zeros_like(mask)
    assert losses.masked_l1(prediction, target, nowhere).item() == 0.0


def test_the_error_of_a_flow_is_taken_at_its_places():
    flow = torch.zeros(1, 2, 4, 4)
    # The third pixel of the second row: 0.1 to the right and 0.2 up.
    flow[0, :, 1, 2] = torch.tensor([0.1, -0.2])
    centres = torch.tensor([[[0.625, 0.375], [0.125, 0.875]]])
    wanted = torch.tensor([[[0.1, -0.2], [0.0, 0.04]]])
    assert losses.flow_error(flow, centres, wanted, torch.ones(2)).item() == pytest.approx(1.0)
    assert losses.flow_error(flow, centres, wanted, torch.tensor([2.0, 5.0])).item() == pytest.approx(5.0)


def test_depth_ignores_background_and_infinity():
    depth = torch.full((1, 1, 2, 2), 4.0, requires_grad=True)
    # Half a unit off, unknown, right, and background.
    target = torch.tensor([4.5, math.inf, 4.0, 100.0])
    target = target.reshape(1, 1, 2, 2)
    opacity = torch.tensor([1.0, 1.0, 1.0, 0.0])
    opacity = opacity.reshape(1, 1, 2, 2)
    value = losses.depth_l1(depth, target, opacity)
    assert value.item() == pytest.approx(0.25)
    value.sum().backward()
    assert torch.isfinite(depth.grad).all()


def test_opacity_is_compared_in_the_official_range():
    nothing = torch.zeros(1, 1, 2, 2)
    all_of_it = torch.ones(1, 1, 2, 2)
    assert losses.opacity_l1(nothing, all_of_it).item() == 2.0


def test_identity_distance_is_one_minus_cosine():
    # The same way, at right angles, and opposite; lengths do not matter.
    one = torch.tensor(
        [
            [1.0, 0.0],
            [1.0, 0.0],
            [2.0, 0.0],
        ]
    )
    other = torch.tensor(
        [
            [3.0, 0.0],
            [0.0, 1.0],
            [-1.0, 0.0],
        ]
    )
    distance = losses.identity_distance(one, other)
    assert distance.tolist() == pytest.approx([0.0, 1.0, 2.0])


def test_over_black_keeps_the_foreground():
    image = torch.full((1, 3, 4, 4), 0.5)
    # A smaller opacity is enlarged to the picture.
    nothing = torch.zeros(1, 1, 2, 2)
    behind = losses.over_black(image, nothing)
    assert behind.unique().tolist() == [-1.0]
    everything = torch.ones(1, 1, 4, 4)
    front = losses.over_black(image, everything)
    assert torch.allclose(front, image)


def test_adversarial_losses():
    undecided = torch.zeros(2, 1)
    # softplus(0) = log 2
    bit = math.log(2)
    synthesizer = losses.generator_adversarial(undecided)
    assert synthesizer.tolist() == pytest.approx([bit, bit])
    discriminator = losses.discriminator_adversarial(undecided, undecided)
    assert discriminator.item() == pytest.approx(2 * bit)


def test_r1_is_half_gamma_times_the_squared_gradient():
    x = torch.ones(2, 3, requires_grad=True)
    # The gradient (1, 2, 2) is 3 long.
    gradient = torch.tensor([1.0, 2.0, 2.0])
    logits = (x * gradient).sum(1)
    penalty = losses.r1_penalty(logits, {"image": (x, 10.0)})
    expected = 0.5 * 10.0 * 9.0
    assert penalty.item() == pytest.approx(expected)
