"""Projected source features are found where the portrait shows them, and can be learnt in all their parts."""

from dataclasses import replace
from itertools import chain

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from model.psi.network import Psi
from model.psi.projection import facing, follow
from model.volume.planes import camera_places, picture_places, sample_portrait, sample_portrait_reference
from model.volume.renderer import camera_rays
from pipeline.parity.numbers import camera
from tests.support.sizes import SMOKE_SIZES

SIDE = 8


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def cameras() -> Tensor:
    """Two cameras (2, 25), the second with a skewed picture whose middle lies elsewhere."""
    first, second = camera(0.3, 0.1), camera(-0.4, 0.2)
    second[:, 16:22] += torch.tensor([0.3, 0.1, 0.05, 0.0, -0.2, -0.04])
    return torch.cat([first, second])


def test_points_on_a_ray_lie_at_the_centre_of_its_pixel() -> None:
    origins, directions = camera_rays(cameras()[:, None], SIDE)
    index = torch.arange(SIDE)
    rows, columns = torch.meshgrid(index, index, indexing="ij")
    centres = (torch.stack([columns, rows], -1) + 0.5) / SIDE
    for depth in (1.5, 4.0):
        points = origins[:, 0, None] + depth * directions[:, 0]
        places = picture_places(points, cameras())
        assert_close(places, centres.flatten(0, 1).expand(2, -1, -1), atol=1e-5, rtol=0)


def test_the_two_ways_to_look_up_agree_with_their_gradients() -> None:
    points = torch.rand(2, 500, 3) * 2.4 - 1.2
    wanted_gradient = torch.randn(2, 500, 3)
    found = []
    for look_up in (sample_portrait, sample_portrait_reference):
        portrait = torch.rand(
            2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1), requires_grad=True
        )
        features = look_up(portrait, cameras(), points)
        features.backward(wanted_gradient)
        found.append((features, portrait.grad))
    (features, gradient), (wanted, wanted_slope) = found
    assert_close(features, wanted, atol=1e-5, rtol=1e-5)
    assert_close(gradient, wanted_slope, atol=1e-4, rtol=1e-4)
    # Some points lie beyond the edges of the pictures.
    assert (features == 0).all(-1).any()


def network() -> Psi:
    psi = Psi(SMOKE_SIZES)
    # These begin at zero, and what is not there has no gradient of its own.
    blocks = psi.encoder_canonical.trans_blocks_motion
    for layer in (
        psi.projection.motion,
        psi.projection.blend,
        psi.projection.gate,
        psi.portrait_detail.last,
        *(block.attn2.proj for block in blocks),
    ):
        torch.nn.init.normal_(layer.weight, std=0.1)
    torch.nn.init.normal_(psi.decoder.out_sigma.weight)
    apart = torch.Generator().manual_seed(1)
    for layer in (psi.projection.near, psi.projection.flow):
        torch.nn.init.normal_(layer.weight, std=0.1, generator=apart)
    return psi


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    image = SMOKE_SIZES.image
    source = torch.rand(2, 3, image, image) * 2 - 1
    own, driving = torch.randn(2, 2, SMOKE_SIZES.motion.dims)
    return source, own, driving, camera(0.2, 0.0).expand(2, 1, -1)


def test_every_part_is_learnt() -> None:
    psi = network()
    rendering = psi(*inputs(), camera_source_B25=cameras())
    rendering.image.square().mean().backward()
    parts = [psi.projection, psi.portrait_detail]
    for name, parameter in chain.from_iterable(part.named_parameters() for part in parts):
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("heard_by", ["attention", "shapes"])
def test_the_driving_motion_changes_the_map(heard_by: str) -> None:
    psi = network()
    if heard_by == "shapes":
        for block in psi.encoder_canonical.trans_blocks_motion:
            torch.nn.init.zeros_(block.attn2.proj.weight)
    else:
        torch.nn.init.zeros_(psi.projection.blend.weight)
    source, own, driving, _ = inputs()
    moved = psi.planes(source, own, driving, 1.0, cameras())
    still = psi.planes(source, own, own, 1.0, cameras())
    change = (moved.portrait_BCSS - still.portrait_BCSS).norm()
    assert change > 1e-3 * still.portrait_BCSS.norm()


@torch.no_grad()
def test_seen_from_the_portrait_an_edit_stays_where_it_was_made() -> None:
    """Of the map alone: the same tri-planes with the map of an edited portrait."""
    psi = network()
    source, own, driving, _ = inputs()
    edited = source.clone()
    half = SMOKE_SIZES.image // 2
    edited[:, :, :half, :half].neg_()
    planes = psi.planes(source, own, driving, 1.0, cameras())
    canonical = psi.encoder_canonical(psi.encoder_global(source), own, driving, 1.0)
    seen = psi.projection.seen(edited, cameras())
    changed = psi.projection.changed(seen, canonical, driving - own)
    other = replace(planes, portrait_BCSS=psi.projection(changed))
    background = psi.background_feature(source)
    before = psi.volume(planes, background, cameras()[:, None]).feature
    after = psi.volume(other, background, cameras()[:, None]).feature
    change = (after - before).square().sum((0, 1))
    half = SMOKE_SIZES.rays // 2
    assert change[:half, :half].sum() > 0.9 * change.sum() > 0


@torch.no_grad()
def test_what_faces_away_from_the_portrait_takes_less_from_it() -> None:
    psi = network()
    torch.nn.init.zeros_(psi.projection.gate.weight)
    place = camera_places(cameras())
    towards = 0.3 * torch.nn.functional.normalize(place, dim=-1)
    # On the near side of the head, and opposite: both lie on a ray of the camera.
    points = torch.stack([towards, -towards], 1)
    assert_close(facing(points, place[:, None]), torch.tensor([[1.0, -1.0]] * 2), atol=1e-5, rtol=0)
    planes = psi.planes(*inputs()[:3], 1.0, cameras())
    added = (psi.features(planes, points) - psi.plane_features(planes, points)).norm(dim=-1)
    near, far = added.unbind(1)
    assert (near > 10 * far).all() and (far > 0).all()


def test_pixels_show_what_lies_where_their_flow_points() -> None:
    pictures = torch.rand(2, 3, SIDE, SIDE)
    flow = torch.zeros(2, 2, SIDE, SIDE)
    assert_close(follow(flow, pictures), pictures)
    # Two pixels to the right and one down, in the second picture alone.
    flow[1, 0], flow[1, 1] = 2 / SIDE, 1 / SIDE
    found = follow(flow, pictures)
    assert_close(found[0], pictures[0])
    assert_close(found[1, :, :-1, :-2], pictures[1, :, 1:, 2:])
    # Beyond an edge lies what lies on it.
    assert_close(found[1, :, -1, :-2], pictures[1, :, -1, 2:])
    # Half a pixel down is the mean of two.
    flow[1, 0], flow[1, 1] = 0.0, 0.5 / SIDE
    assert_close(follow(flow, pictures)[1, :, :-1], (pictures[1, :, :-1] + pictures[1, :, 1:]) / 2)


def test_a_flow_is_learnt_from_pictures() -> None:
    """From a soft blob and the same blob two pixels further on, which it has to be taken from."""
    middle = torch.arange(4 * SIDE) - 15.5
    square = middle[:, None].square()
    blob, moved = (torch.exp(-(square + (middle - shift).square()) / 50)[None, None] for shift in (0.0, 2.0))
    flow = torch.zeros(2, requires_grad=True)
    optimiser = torch.optim.Adam([flow], 0.003)
    for _ in range(100):
        optimiser.zero_grad()
        everywhere = flow[None, :, None, None].expand(-1, -1, 4 * SIDE, 4 * SIDE)
        (follow(everywhere, blob) - moved).square().mean().backward()
        optimiser.step()
    assert_close(4 * SIDE * flow.detach(), torch.tensor([-2.0, 0.0]), atol=0.05, rtol=0)


@torch.no_grad()
def test_the_flow_takes_along_colours_and_features() -> None:
    psi = network()
    source, own, driving, _ = inputs()
    canonical = psi.encoder_canonical(psi.encoder_global(source), own, driving, 1.0)
    seen = psi.projection.seen(source, cameras())
    moved = psi.projection.changed(seen, canonical, driving - own)
    still = psi.projection.changed(seen, canonical, own - own)
    torch.nn.init.zeros_(psi.projection.flow.weight)
    resting = psi.projection.changed(seen, canonical, driving - own)
    assert_close(still.portrait_B3SS, resting.portrait_B3SS)
    assert_close(resting.portrait_B3SS, source)
    for name in ("portrait_B3SS", "features_BWSS"):
        assert (getattr(moved, name) - getattr(resting, name)).abs().amax() > 0.01


def test_it_needs_the_camera_of_the_source() -> None:
    source, own, driving, _ = inputs()
    with pytest.raises(ValueError, match="the source's camera is needed"):
        network().planes(source, own, driving)


@torch.no_grad()
def test_detail_is_looked_up_where_the_portrait_shows_it() -> None:
    """Of what is looked up alone: the same rendering with that of an edited portrait."""
    psi = network()
    torch.nn.init.normal_(psi.portrait_detail.last.weight, std=0.1)
    source, own, driving, _ = inputs()
    planes = psi.planes(source, own, driving, 1.0, cameras())
    # Opaque, so that all of the picture is looked up.
    rendering = psi.render(planes, psi.background_feature(source), cameras()[:, None])
    rendering.opacity = torch.ones_like(rendering.opacity)
    rendering.depth = torch.full_like(rendering.depth, 4.0)
    before = psi.portrait_detail(rendering, planes, cameras()[:, None])
    half = SMOKE_SIZES.image // 2
    edited = planes.detail_BDSS.clone()
    edited[:, :, :half, :half].neg_()
    after = psi.portrait_detail(rendering, replace(planes, detail_BDSS=edited), cameras()[:, None])
    changed = (after - before).abs().amax((0, 1)) > 1e-6
    # Three convolutions and the look-up see four pixels around.
    assert changed[:half, :half].all()
    assert not changed[half + 4 :].any() and not changed[:, half + 4 :].any()


@torch.no_grad()
def test_pixels_without_a_head_keep_their_colours() -> None:
    psi = network()
    source, own, driving, _ = inputs()
    planes = psi.planes(source, own, driving, 1.0, cameras())
    rendering = psi.render(planes, psi.background_feature(source), cameras()[:, None])
    rendering.opacity = torch.zeros_like(rendering.opacity)
    torch.nn.init.zeros_(psi.portrait_detail.last.weight)
    found = psi.portrait_detail(rendering, planes, cameras()[:, None])
    # As at the start, when nothing is added.
    assert_close(found, rendering.image, atol=0, rtol=0)


@torch.no_grad()
def test_less_of_the_portrait_is_left_where_the_face_moves() -> None:
    psi = network()
    source, own, driving, _ = inputs()

    def left(motion: Tensor, scale: float) -> Tensor:
        return psi.planes(source, own, motion, scale, cameras()).detail_BDSS[:, 3]

    assert (left(own, 1.0) == 1).all() and (left(driving, 0.0) == 1).all()
    assert left(driving, 1.0).min() < 0.8
    assert (left(driving, 0.3) >= left(driving, 1.0)).float().mean() > 0.9


def test_without_detail_the_other_parts_are_the_same() -> None:
    torch.manual_seed(3)
    without = Psi(replace(SMOKE_SIZES, psi=replace(SMOKE_SIZES.psi, portrait_detail=0)))
    torch.manual_seed(3)
    detailed = Psi(SMOKE_SIZES).state_dict()
    assert all(torch.equal(value, detailed[name]) for name, value in without.state_dict().items())
    added = detailed.keys() - without.state_dict().keys()
    assert added and all(name.startswith("portrait_detail.") for name in added)


def test_without_it_the_other_parts_are_the_same() -> None:
    torch.manual_seed(3)
    published = Psi(replace(SMOKE_SIZES, psi=replace(SMOKE_SIZES.psi, projected=0)))
    torch.manual_seed(3)
    projected = Psi(SMOKE_SIZES).state_dict()
    assert all(torch.equal(value, projected[name]) for name, value in published.state_dict().items())
    assert any(name.startswith("projection.") for name in projected)
