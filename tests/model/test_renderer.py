"""The renderer: rays, look-up, integration, against hand calculation and the readable versions."""

import math

import numpy as np
import pytest
import torch

from model.volume.colour_decoder import CHUNK, ColourDecoder
from model.volume.planes import sample_planes, sample_planes_reference
from model.volume.renderer import camera_rays, importance_depths, interval_weights, render_rays
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
) -> torch.Tensor:
    return torch.from_numpy(look_at(yaw, vertical, radius, np.array([0.0, 0.01, 0.08]), roll=0.1))


def test_rays_go_through_what_projects_to_their_pixels() -> None:
    own = INTRINSICS.copy()
    own[0] = [3.0, 0.05, 0.45]
    own[1, 1:] = [3.5, 0.52]
    cam2world = camera().numpy()[:16].reshape(4, 4)
    cam = pack(cam2world, own)
    origins, directions = camera_rays(torch.from_numpy(cam)[None, None], 8)
    points = (origins[:, :, None] + 3.7 * directions)[0, 0].numpy()
    centres = (np.arange(8) + 0.5) / 8
    expected = np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2)
    np.testing.assert_allclose(project(points, cam), expected, atol=1e-5)
    np.testing.assert_allclose(directions.norm(dim=-1), 1.0, atol=1e-6)


def test_planes_hold_xy_yz_zx() -> None:
    planes = torch.zeros(1, 3, 1, 8, 8)
    # x runs to the right, y down the rows.
    planes[0, 0, 0, 2, 6] = 3.0
    planes[0, 1, 0, 5, 2] = 6.0
    planes[0, 2, 0, 6, 5] = 9.0
    x, y, z = (((texel + 0.5) / 8 * 2 - 1) * BOX / 2 for texel in (6, 2, 5))
    point = torch.tensor([[[x, y, z]]])
    for look_up in (sample_planes, sample_planes_reference):
        found = look_up(planes, point, BOX)
        torch.testing.assert_close(found, torch.tensor([[[6.0]]]))


def test_look_up_equals_the_readable_one_in_value_and_gradient() -> None:
    planes = torch.randn(2, 3, 5, 8, 8, requires_grad=True)
    edges = torch.tensor([-10.0, -0.65, -0.6499, -0.57, 0.0, 0.57, 0.6499, 0.65, 10.0, 0.75])
    special = torch.cartesian_prod(edges, edges, edges).expand(2, -1, -1)
    points = torch.cat([special, 0.8 * torch.randn(2, 3000, 3)], 1)
    weight = torch.randn(2, points.shape[1], 5)
    expected = sample_planes_reference(planes, points, BOX)
    found = sample_planes(planes, points, BOX)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad((values * weight).sum(), planes)[0] for values in (expected, found)]
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-5)
    again = torch.autograd.grad((sample_planes(planes, points, BOX) * weight).sum(), planes)[0]
    assert torch.equal(again, gradients[1])


@pytest.mark.parametrize("gain", [1.0, 100.0])
def test_decoder_equals_the_readable_one_in_value_and_gradient(gain: float) -> None:
    decoder = ColourDecoder(6, 10, 4)
    torch.nn.init.normal_(decoder.out_sigma.weight)
    results = []
    data = gain * torch.randn(2, CHUNK - 100, 6)
    weights = torch.randn(2, CHUNK - 100, 4), torch.randn(2, CHUNK - 100)
    for run in (decoder.reference, decoder):
        decoder.zero_grad()
        feature = data.clone().requires_grad_()
        colour, sigma = run(feature)
        torch.autograd.backward([colour, sigma], weights)
        results.append(
            [colour.detach(), sigma.detach(), feature.grad, *(p.grad for p in decoder.parameters())]
        )
    for expected, found in zip(*results, strict=True):
        error = (found - expected).norm() / expected.norm()
        assert error < 1e-4


def test_weights_of_a_ray_by_hand() -> None:
    depths = torch.tensor([[1.0, 1.5, 2.5]])
    sigma = torch.tensor([[0.0, 2.0, -4.0]])
    # softplus(mean of the ends - 1), times the length of the interval.
    first = 1 - math.exp(-math.log1p(math.exp(1.0 - 1.0)) * 0.5)
    second = 1 - math.exp(-math.log1p(math.exp(-1.0 - 1.0)) * 1.0)
    wanted = torch.tensor([[first, (1 - first) * second]])
    torch.testing.assert_close(interval_weights(depths, sigma), wanted)


def test_fine_samples_gather_where_the_weight_is() -> None:
    depths = torch.linspace(3.5, 4.8, 24).expand(5, -1)
    weights = torch.zeros(5, 23)
    weights[:, 12] = 1.0
    fine, again = (importance_depths(depths, weights, 16, torch.Generator().manual_seed(1)) for _ in range(2))
    inside = (fine - depths[0, 12]).abs() < 0.15
    assert inside.float().mean() > 0.6
    assert torch.equal(fine, again)


def sphere(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A dense ball of radius 0.3, coloured by position."""
    return points * 0.5 + 0.5, 20000.0 * (0.3 - points.norm(dim=-1))


def test_a_ball_has_its_depth_colour_and_outline() -> None:
    cameras = torch.stack([camera(), camera(yaw=-0.5)])[None]
    rays = render_rays(sphere, cameras, 33, 48, 48, BOX)
    assert rays.colour.shape == (1, 2, 33 * 33, 3) and rays.opacity.shape == (1, 2, 33 * 33)
    origins, directions = camera_rays(cameras, 33)
    along = -(directions * origins[:, :, None]).sum(-1)
    miss = (origins.square().sum(-1)[..., None] - along.square()).sqrt()
    assert torch.all(rays.opacity[miss < 0.25] > 0.95)
    assert torch.all(rays.opacity[miss > 0.32] < 0.05)
    hit = miss < 0.2
    surface = along - (0.09 - miss.square()).clamp(min=0).sqrt()
    torch.testing.assert_close(rays.depth[hit], surface[hit], atol=0.03, rtol=0)
    seen = origins[:, :, None] + surface[..., None] * directions
    torch.testing.assert_close(rays.colour[hit], seen[hit] * 0.5 + 0.5, atol=0.02, rtol=0)


def test_colours_need_no_sorting() -> None:
    """The shares of unsorted samples give what sorting all samples and averaging neighbours gives."""
    cameras = camera()[None, None]
    rays = render_rays(sphere, cameras, 8, 12, 12, BOX, torch.Generator().manual_seed(0))
    origins, directions = camera_rays(cameras, 8)
    colour, _ = sphere(origins[:, :, None, None] + rays.depths[..., None] * directions[..., None, :])
    middle = (colour[..., :-1, :] + colour[..., 1:, :]) / 2
    torch.testing.assert_close(rays.colour, (rays.weights[..., None] * middle).sum(-2), atol=1e-5, rtol=1e-5)
    assert torch.all(rays.depths.diff(dim=-1) >= 0)


def test_empty_space_is_harmless() -> None:
    density = torch.tensor(-1000.0, requires_grad=True)
    rays = render_rays(lambda p: (p * density, p[..., 0] * 0 + density), camera()[None, None], 4, 8, 8, BOX)
    (rays.depth.sum() + rays.colour.sum()).backward()
    assert torch.isfinite(rays.depth).all() and torch.isfinite(density.grad)
    assert torch.all(rays.depth == rays.depths.max()) and torch.all(rays.opacity == 0)
