"""GenHead: masks, and what parts of it may and may not influence. Layout and parity: test_parity."""

import numpy as np
import pytest
import torch

from model.genhead import GenHead, HeadState, fuse_by_mask
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
    turns = [[0.0, 0.4], [-0.3, 0.6]]
    return torch.from_numpy(
        np.array([[look_at(yaw, 0.0, 4.2, np.array([0.0, 0.0, 0.1])) for yaw in row] for row in turns])
    )


def test_masks_lie_where_the_eyes_and_the_open_mouth_are(flame: Flame) -> None:
    camera = cameras()[:1, 0]
    pose = torch.zeros(1, 6)
    closed_mask = part_masks(
        flame, flame.vertices(torch.zeros(1, 300), torch.zeros(1, 100), pose, torch.zeros(1, 6)), camera, 64
    )[1]
    pose[0, 3] = 0.3
    vertices = flame.vertices(torch.zeros(1, 300), torch.zeros(1, 100), pose, torch.zeros(1, 6))
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
    assert found.image.shape == (
        4,
        3,
        32,
        32,
    ) and found.raw.shape == found.foreground.shape == found.background.shape == (4, 3, 16, 16)
    assert found.opacity.shape == found.depth.shape == (4, 1, 16, 16) and found.feature.shape == (
        4,
        8,
        16,
        16,
    )
    assert found.opacity.min() >= 0 and found.opacity.max() <= 1
    found.image.square().mean().backward()
    missing = [
        name for name, p in genhead.named_parameters() if p.grad is None and "noise_strength" not in name
    ]
    assert not missing


def test_views_of_a_head_do_not_depend_on_each_other(genhead: GenHead) -> None:
    label, views, z = labels(), cameras(), torch.randn(2, 32)
    torch.nn.init.normal_(genhead.decoder.out_sigma.weight)
    with torch.no_grad():
        offsets = genhead.offsets(label, 8)
        together = genhead(z, label[:, Label.CONDITION], genhead.state(label, views, offsets), views)
        alone = genhead(
            z[1:],
            label[1:, Label.CONDITION],
            genhead.state(label[1:], views[1:, 1:], offsets[1:]),
            views[1:, 1:],
        )
    assert torch.allclose(together.raw[3:], alone.raw, atol=1e-5) and torch.allclose(
        together.image[3:], alone.image, atol=1e-4
    )


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
        change = (
            (genhead.rays(planes, state, views).colour - genhead.rays(other, state, views).colour)
            .abs()
            .amax(-1)
        )
    covered = ((state.eye_mask_BVnn > 0) | (state.mouth_mask_BVnn > 0)).flatten(2)
    assert covered.any() and change[covered].max() > 0.01 and change[~covered].max() == 0


def test_plane_features_are_those_of_the_face_planes_at_the_canonical_point(genhead: GenHead) -> None:
    label, views = labels(), cameras()
    state = genhead.state(label, views)
    head = Label.split(label)
    vertices = genhead.deformation.meshes(head.shape, head.expression, head.jaw, head.eyes)[0]
    index = torch.as_tensor(genhead.deformation.flame.head.regions["face"][:20])
    planes = torch.randn(2, 6, 8, 16, 16)
    found = genhead.plane_features(planes, vertices[:, index], state)
    still = HeadState(
        lambda points, part: points, state.eye_boxes_BE23, state.eye_mask_BVnn, state.mouth_mask_BVnn
    )
    canonical = genhead.deformation.canonical_V3[index].expand(2, -1, -1)
    assert torch.allclose(found, genhead.plane_features(planes, canonical, still), atol=5e-2)
    assert torch.equal(
        found, genhead.plane_features(torch.cat([planes[:, 3:], planes[:, 3:]], 1), vertices[:, index], state)
    )


def test_full_masks_replace_the_face() -> None:
    face, eye, mouth = (
        (torch.full((1, 4, 2), c), torch.full((1, 4), s)) for c, s in ((0.1, 1.0), (0.5, 2.0), (0.9, 3.0))
    )
    everywhere, nowhere = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.bool)
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    for found, wanted in (
        (fuse_by_mask(face, eye, mouth, everywhere, one, zero), eye),
        (fuse_by_mask(face, eye, mouth, nowhere, one, zero), face),
        (fuse_by_mask(face, eye, mouth, nowhere, zero, one), mouth),
        (fuse_by_mask(face, eye, mouth, everywhere, zero, zero), face),
    ):
        assert torch.allclose(found[0], wanted[0]) and torch.allclose(found[1], wanted[1])


def test_intrinsics_of_the_tests_are_those_of_the_labels() -> None:
    assert np.allclose(cameras()[0, 0, 16:].reshape(3, 3), INTRINSICS)
