"""The renderer: rays, look-up, integration, against hand calculation and the readable versions."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from model.volume.colour_decoder import CHUNK, ColourDecoder
from model.volume.planes import sample_planes, sample_planes_reference
from model.volume.renderer import (
    camera_rays,
    importance_depths,
    interval_weights,
    render_rays,
    thickness,
)
from pipeline.geometry.camera import INTRINSICS, look_at, pack, project

BOX = 1.3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def camera(
    yaw: float = 0.3,
    vertical: float = 0.1,
    radius: float = 4.2,
) -> Tensor:
    centre = np.array([0.0, 0.01, 0.08])
    label = look_at(yaw, vertical, radius, centre, roll=0.1)
    return torch.from_numpy(label)


def test_rays_go_through_what_projects_to_their_pixels() -> None:
    # Any focal lengths, a skew, and a centre that is not the picture's.
    own = INTRINSICS.copy()
    own[0] = [3.0, 0.05, 0.45]
    own[1, 1:] = [3.5, 0.52]
    outer = camera().numpy()[:16]
    cam = pack(outer.reshape(4, 4), own)
    cameras = torch.from_numpy(cam)[None, None]
    origins, directions = camera_rays(cameras, 8)
    along = 3.7 * directions
    points = origins[:, :, None] + along
    pixels = np.arange(8) + 0.5
    centres = pixels / 8
    x, y = np.meshgrid(centres, centres)
    expected = np.stack([x, y], -1)
    expected = expected.reshape(-1, 2)
    found = project(points[0, 0].numpy(), cam)
    lengths = directions.norm(dim=-1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-6)


def test_planes_hold_xy_yz_zx() -> None:
    planes = torch.zeros(1, 3, 1, 8, 8)
    # x runs to the right, y down the rows.
    xy, yz, zx = planes[0, :, 0]
    xy[2, 6] = 3.0
    yz[5, 2] = 6.0
    zx[6, 5] = 9.0
    texels = torch.tensor([[[6, 2, 5]]])
    fractions = (texels + 0.5) / 8
    from_middle = fractions * 2 - 1
    point = from_middle * BOX / 2
    mean = torch.tensor([[[6.0]]])
    for look_up in (sample_planes, sample_planes_reference):
        found = look_up(planes, point, BOX)
        assert_close(found, mean)


def test_look_up_equals_the_readable_one_in_value_and_gradient() -> None:
    planes = torch.randn(2, 3, 5, 8, 8, requires_grad=True)
    # Corners of the box, what lies just within and without, and far away.
    positive = torch.tensor([0.57, 0.6499, 0.65, 10.0])
    others = torch.tensor([0.0, 0.75])
    edges = torch.cat([-positive, positive, others])
    special = torch.cartesian_prod(edges, edges, edges)
    others = 0.8 * torch.randn(2, 3000, 3)
    special = special.expand(2, -1, -1)
    points = torch.cat([special, others], 1)
    weight = torch.randn(2, points.shape[1], 5)

    def gradient(values: Tensor) -> Tensor:
        total = (values * weight).sum()
        (found,) = torch.autograd.grad(total, planes)
        return found

    expected = sample_planes_reference(planes, points, BOX)
    found = sample_planes(planes, points, BOX)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    own = gradient(found)
    assert_close(own, gradient(expected), atol=1e-4, rtol=1e-5)
    # The same bits each time.
    again = sample_planes(planes, points, BOX)
    assert torch.equal(gradient(again), own)


@pytest.mark.parametrize("gain", [1.0, 100.0])
def test_decoder_equals_the_readable_one_in_value_and_gradient(gain: float) -> None:
    decoder = ColourDecoder(6, 10, 4)
    torch.nn.init.normal_(decoder.out_sigma.weight)
    # More than a chunk and less than two, so that the last one is cut.
    points = CHUNK - 100
    data = gain * torch.randn(2, points, 6)
    colour_weights = torch.randn(2, points, 4)
    sigma_weights = torch.randn(2, points)
    weights = [colour_weights, sigma_weights]
    results = []
    for run in (decoder.reference, decoder):
        decoder.zero_grad()
        feature = data.clone().requires_grad_()
        colour, sigma = run(feature)
        torch.autograd.backward([colour, sigma], weights)
        gradients = [parameter.grad for parameter in decoder.parameters()]
        found = [colour.detach(), sigma.detach()]
        results.append([*found, feature.grad, *gradients])
    for expected, found in zip(*results, strict=True):
        error = found - expected
        assert error.norm() < 1e-4 * expected.norm()


def test_weights_of_a_ray_by_hand() -> None:
    depths = torch.tensor([[1.0, 1.5, 2.5]])
    sigma = torch.tensor([[0.0, 2.0, -4.0]])
    # softplus(mean of the ends - 1), times the length of the interval.
    density = math.log1p(math.exp(1.0 - 1.0))
    left = math.exp(-density * 0.5)
    density = math.log1p(math.exp(-1.0 - 1.0))
    left_at_last = left * math.exp(-density * 1.0)
    wanted = torch.tensor([[1 - left, left - left_at_last]])
    found = interval_weights(depths, sigma)
    assert_close(found, wanted)


def test_fine_samples_gather_where_the_weight_is() -> None:
    depths = torch.linspace(3.5, 4.8, 24)
    here = depths[12]
    depths = depths.expand(5, -1)
    weights = torch.zeros(5, 23)
    weights[:, 12] = 1.0

    def draw() -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return importance_depths(depths, weights, 16, generator)

    fine = draw()
    offset = (fine - here).abs()
    inside = offset < 0.15
    share = inside.float().mean()
    assert share > 0.6
    assert torch.equal(fine, draw())


def sphere(points: Tensor) -> tuple[Tensor, Tensor]:
    """A dense ball of radius 0.3, coloured by position."""
    depth_within = 0.3 - points.norm(dim=-1)
    sigma = 20000.0 * depth_within
    return points * 0.5 + 0.5, sigma


def test_a_ball_has_its_depth_colour_and_outline() -> None:
    views = [camera(), camera(yaw=-0.5)]
    cameras = torch.stack(views)[None]
    rays = render_rays(sphere, cameras, 33, 48, 48, BOX)
    shape = (1, 2, 33 * 33)
    assert rays.colour.shape == (*shape, 3)
    assert rays.opacity.shape == shape
    origins, directions = camera_rays(cameras, 33)
    origins = origins[:, :, None]
    # Where a ray is nearest to the middle of the ball, and how near.
    along = -(directions * origins).sum(-1)
    distance2 = origins.square().sum(-1)
    miss2 = distance2 - along.square()
    miss = miss2.sqrt()
    opacity_inside = rays.opacity[miss < 0.25]
    opacity_outside = rays.opacity[miss > 0.32]
    assert torch.all(opacity_inside > 0.95)
    assert torch.all(opacity_outside < 0.05)
    hit = miss < 0.2
    half_chord2 = 0.09 - miss.square()
    half_chord = half_chord2.clamp(min=0).sqrt()
    surface = along - half_chord
    depth = rays.depth[hit]
    assert_close(depth, surface[hit], atol=0.03, rtol=0)
    to_surface = surface[..., None] * directions
    seen = origins + to_surface
    colour, _ = sphere(seen)
    found = rays.colour[hit]
    assert_close(found, colour[hit], atol=0.02, rtol=0)


def test_colours_need_no_sorting() -> None:
    """The shares of unsorted samples give what sorting all samples and averaging neighbours gives."""
    cameras = camera()[None, None]
    generator = torch.Generator().manual_seed(0)
    rays = render_rays(sphere, cameras, 8, 12, 12, BOX, generator)
    origins, directions = camera_rays(cameras, 8)
    depths = rays.depths[..., None]
    along = depths * directions[..., None, :]
    points = origins[:, :, None, None] + along
    colour, _ = sphere(points)
    before = colour[..., :-1, :]
    behind = colour[..., 1:, :]
    middle = (before + behind) / 2
    weighted = rays.weights[..., None] * middle
    wanted = weighted.sum(-2)
    assert_close(rays.colour, wanted, atol=1e-5, rtol=1e-5)
    steps = rays.depths.diff(dim=-1)
    assert torch.all(steps >= 0)


def test_empty_space_is_harmless() -> None:
    density = torch.tensor(-1000.0, requires_grad=True)

    def nothing(points: Tensor) -> tuple[Tensor, Tensor]:
        sigma = density.expand(points.shape[:-1])
        return points * density, sigma

    cameras = camera()[None, None]
    rays = render_rays(nothing, cameras, 4, 8, 8, BOX)
    depth = rays.depth.sum()
    total = depth + rays.colour.sum()
    total.backward()
    assert torch.isfinite(rays.depth).all()
    assert torch.isfinite(density.grad)
    farthest = rays.depths.max()
    assert torch.all(rays.depth == farthest)
    assert torch.all(rays.opacity == 0)


def test_thickness_of_a_ray_by_hand_makes_thinner_and_moves_nothing() -> None:
    depths = torch.tensor([1.0, 1.2, 1.6, 2.0])
    # The middles of the intervals lie at 1.1, 1.4 and 1.8.
    weights = torch.tensor([0.4, 0.1, 0.3], requires_grad=True)
    depth = torch.tensor(1.4, requires_grad=True)
    found = thickness(depths, weights, depth)
    assert_close(found, torch.tensor(0.4 * 0.3 + 0.3 * 0.4))
    found.backward()
    assert_close(weights.grad, torch.tensor([0.3, 0.0, 0.4]))
    assert depth.grad is None
