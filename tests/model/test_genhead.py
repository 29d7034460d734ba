"""GenHead: masks, and what parts of it may and may not influence. Layout and parity: test_parity."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.genhead import GenHead, fuse_by_mask
from model.head.flame import Flame
from model.head.label import Label
from model.head.rasterise import part_masks
from model.sizes import GenHeadSizes, Sizes
from pipeline.geometry.camera import INTRINSICS, look_at, project
from pipeline.geometry.standin import standin

SMALL = Sizes(
    image=32,
    rays=16,
    samples=6,
    samples_fine=6,
    plane_resolution=16,
    plane_channels=8,
    decoder_hidden=16,
    feature_channels=8,
    w_dim=16,
    superresolution_channels=(8,),
    genhead=GenHeadSizes(
        z_dim=32,
        channel_base=256,
        channel_max=16,
        background_resolution=8,
        background_mapping_layers=2,
        background_channel_base=128,
        background_channel_max=16,
    ),
)


@pytest.fixture(scope="module")
def flame() -> Flame:
    return Flame(standin())


@pytest.fixture
def genhead(flame: Flame) -> GenHead:
    torch.manual_seed(0)
    return GenHead(SMALL, flame)


def labels(jaw: float = 0.3) -> torch.Tensor:
    label = torch.zeros(2, Label.SIZE)
    label[:, Label.CAMERA] = cameras()[:, 0]
    label[1, Label.SHAPE][:10] = 1.0
    label[:, Label.JAW.start] = jaw
    return label


def cameras() -> torch.Tensor:
    turns = (0.0, 0.4, -0.3, 0.6)
    centre = np.array([0.0, 0.0, 0.1])
    views = [look_at(yaw, 0.0, 4.2, centre) for yaw in turns]
    return torch.from_numpy(np.stack(views)).view(2, 2, 25)


def test_masks_lie_where_the_eyes_and_the_open_mouth_are(flame: Flame) -> None:
    camera = cameras()[:1, 0]
    shape = torch.zeros(1, 300)
    expression = torch.zeros(1, 100)
    eyes = torch.zeros(1, 6)
    pose = torch.zeros(1, 6)
    _, closed_mask = part_masks(flame, flame.vertices(shape, expression, pose, eyes), camera, 64)
    pose[0, 3] = 0.3
    vertices = flame.vertices(shape, expression, pose, eyes)
    landmarks = project(flame.landmarks(vertices)[0].numpy(), camera[0].numpy())
    eyes, mouth = part_masks(flame, vertices, camera, 64)
    grid = (torch.arange(64) + 0.5) / 64
    for mask, points in ((eyes, landmarks[36:48]), (mouth, landmarks[60:68])):
        assert mask.min() >= 0 and mask.max() == 1
        weight = mask[0, 0] / mask.sum()
        centre = np.array([(weight.sum(0) * grid).sum(), (weight.sum(1) * grid).sum()])
        assert np.abs(centre - points.mean(0)).max() < 0.02
    assert closed_mask.sum() < 0.2 * mouth.sum()


def test_shapes_and_ranges_of_a_rendering(genhead: GenHead) -> None:
    label, views = labels(), cameras()
    state = genhead.state(label, views, genhead.offsets(label, 8))
    found = genhead(torch.randn(2, 32), label[:, Label.CONDITION], state, views)
    assert found.image.shape == (4, 3, 32, 32)
    assert found.raw.shape == found.foreground.shape == found.background.shape == (4, 3, 16, 16)
    assert found.opacity.shape == found.depth.shape == (4, 1, 16, 16)
    assert found.feature.shape == (4, 8, 16, 16)
    assert found.opacity.min() >= 0 and found.opacity.max() <= 1
    found.image.square().mean().backward()
    without = [name for name, parameter in genhead.named_parameters() if parameter.grad is None]
    assert all("noise_strength" in name for name in without)


def test_views_of_a_head_do_not_depend_on_each_other(genhead: GenHead) -> None:
    label = labels()
    views = cameras()
    z = torch.randn(2, 32)
    torch.nn.init.normal_(genhead.decoder.out_sigma.weight)
    with torch.no_grad():
        offsets = genhead.offsets(label, 8)
        together = genhead(z, label[:, Label.CONDITION], genhead.state(label, views, offsets), views)
        last = genhead.state(label[1:], views[1:, 1:], offsets[1:])
        alone = genhead(z[1:], label[1:, Label.CONDITION], last, views[1:, 1:])
    assert torch.allclose(together.raw[3:], alone.raw, atol=1e-5)
    assert torch.allclose(together.image[3:], alone.image, atol=1e-4)


def test_without_offsets_the_deformation_is_exact(genhead: GenHead) -> None:
    label, views = labels(0.1), cameras()
    assert genhead.offsets(label, 0) is None
    points = torch.rand(2, 100, 3, generator=torch.Generator().manual_seed(0)) * 0.6 - 0.3
    exact = genhead.state(label, views).deform(points, "face")
    near = genhead.state(label, views, genhead.offsets(label, 24)).deform(points, "face")
    assert (exact - near).norm(dim=2).mean() < 0.5 * (exact - points).norm(dim=2).mean()


def test_part_planes_show_only_through_the_masks(genhead: GenHead) -> None:
    label, views = labels(), cameras()
    torch.nn.init.normal_(genhead.decoder.out_sigma.weight)
    with torch.no_grad():
        planes = genhead.planes(torch.randn(2, 32), label[:, Label.CONDITION])
        state = genhead.state(label, views, genhead.offsets(label, 8))
        other = planes.clone()
        other[:, :3] += 1.0
        before, after = (genhead.rays(each, state, views).colour for each in (planes, other))
    change = (after - before).abs().amax(-1)
    covered = ((state.eye_mask_BVnn > 0) | (state.mouth_mask_BVnn > 0)).flatten(2)
    assert covered.any()
    assert change[covered].max() > 0.01 and change[~covered].max() == 0


def test_plane_features_are_those_of_the_face_planes_at_the_canonical_point(genhead: GenHead) -> None:
    label, views = labels(), cameras()
    state = genhead.state(label, views)
    head = Label.split(label)
    vertices, _ = genhead.deformation.meshes(head.shape, head.expression, head.jaw, head.eyes)
    index = torch.as_tensor(genhead.deformation.flame.head.regions["face"][:20])
    planes = torch.randn(2, 6, 8, 16, 16)
    found = genhead.plane_features(planes, vertices[:, index], state)
    still = replace(state, deform=lambda points, part: points)
    canonical = genhead.deformation.canonical_V3[index].expand(2, -1, -1)
    assert torch.allclose(found, genhead.plane_features(planes, canonical, still), atol=5e-2)
    face_planes_twice = torch.cat([planes[:, 3:], planes[:, 3:]], 1)
    again = genhead.plane_features(face_planes_twice, vertices[:, index], state)
    assert torch.equal(found, again)


def test_full_masks_replace_the_face() -> None:
    def samples(colour: float, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((1, 4, 2), colour), torch.full((1, 4), sigma)

    face = samples(0.1, 1.0)
    eye = samples(0.5, 2.0)
    mouth = samples(0.9, 3.0)
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    nowhere = torch.zeros(1, 4, dtype=torch.bool)
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    cases = (
        (everywhere, one, zero, eye),
        (nowhere, one, zero, face),
        (nowhere, zero, one, mouth),
        (everywhere, zero, zero, face),
    )
    for in_eye, eye_mask, mouth_mask, wanted in cases:
        colour, sigma = fuse_by_mask(face, eye, mouth, in_eye, eye_mask, mouth_mask)
        assert torch.allclose(colour, wanted[0]) and torch.allclose(sigma, wanted[1])


def test_intrinsics_of_the_tests_are_those_of_the_labels() -> None:
    assert np.allclose(cameras()[0, 0, 16:].reshape(3, 3), INTRINSICS)
