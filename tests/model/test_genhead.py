"""GenHead: masks, and what parts of it may and may not influence. Layout and parity: test_parity."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

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


def labels(jaw: float = 0.3) -> Tensor:
    label = torch.zeros(2, Label.SIZE)
    # Two people, of whom the second has another shape.
    label[:, Label.CAMERA] = cameras()[:, 0]
    label[1, Label.SHAPE][:10] = 1.0
    label[:, Label.JAW.start] = jaw
    return label


def cameras() -> Tensor:
    turns = (0.0, 0.4, -0.3, 0.6)
    centre = np.array([0.0, 0.0, 0.1])
    views = [look_at(yaw, 0.0, 4.2, centre) for yaw in turns]
    stacked = torch.from_numpy(np.stack(views))
    return stacked.view(2, 2, 25)


def test_masks_lie_where_the_eyes_and_the_open_mouth_are(flame: Flame) -> None:
    camera = cameras()[:1, 0]
    shape = torch.zeros(1, 300)
    expression = torch.zeros(1, 100)
    straight = torch.zeros(1, 6)
    pose = torch.zeros(1, 6)
    at_rest = flame.vertices(shape, expression, pose, straight)
    _, closed_mask = part_masks(flame, at_rest, camera, 64)
    # The jaw's rotation about x opens the mouth.
    pose[0, 3] = 0.3
    vertices = flame.vertices(shape, expression, pose, straight)
    (in_space,) = flame.landmarks(vertices).numpy()
    landmarks = project(in_space, camera[0].numpy())
    eyes, mouth = part_masks(flame, vertices, camera, 64)
    grid = (torch.arange(64) + 0.5) / 64
    eye_points = landmarks[36:48]
    mouth_points = landmarks[60:68]
    for mask, points in ((eyes, eye_points), (mouth, mouth_points)):
        assert mask.min() >= 0
        assert mask.max() == 1
        weight = mask[0, 0] / mask.sum()
        x = weight.sum(0) @ grid
        y = weight.sum(1) @ grid
        wanted_x, wanted_y = points.mean(0)
        assert x == pytest.approx(wanted_x, abs=0.02)
        assert y == pytest.approx(wanted_y, abs=0.02)
    assert closed_mask.sum() < 0.2 * mouth.sum()


def test_shapes_and_ranges_of_a_rendering(genhead: GenHead) -> None:
    label = labels()
    views = cameras()
    offsets = genhead.offsets(label, 8)
    state = genhead.state(label, views, offsets)
    z = torch.randn(2, 32)
    found = genhead(z, label[:, Label.CONDITION], state, views)
    shapes = {name: tuple(values.shape) for name, values in vars(found).items()}
    assert shapes == {
        "image": (4, 3, 32, 32),
        "raw": (4, 3, 16, 16),
        "foreground": (4, 3, 16, 16),
        "background": (4, 3, 16, 16),
        "opacity": (4, 1, 16, 16),
        "depth": (4, 1, 16, 16),
        "thickness": (4, 1, 16, 16),
        "feature": (4, 8, 16, 16),
    }
    assert found.opacity.min() >= 0
    assert found.opacity.max() <= 1
    found.image.square().mean().backward()
    # Super-resolution adds no noise.
    for name, parameter in genhead.named_parameters():
        assert parameter.grad is not None or "noise_strength" in name


def test_views_of_a_head_do_not_depend_on_each_other(genhead: GenHead) -> None:
    label = labels()
    views = cameras()
    z = torch.randn(2, 32)
    condition = label[:, Label.CONDITION]
    torch.nn.init.normal_(genhead.decoder.out_sigma.weight)
    with torch.no_grad():
        offsets = genhead.offsets(label, 8)
        all_states = genhead.state(label, views, offsets)
        together = genhead(z, condition, all_states, views)
        # The last view of the last head.
        last_view = views[1:, 1:]
        last_state = genhead.state(label[1:], last_view, offsets[1:])
        alone = genhead(z[1:], condition[1:], last_state, last_view)
    raw = together.raw[3:]
    image = together.image[3:]
    assert torch.allclose(raw, alone.raw, atol=1e-5)
    assert torch.allclose(image, alone.image, atol=1e-4)


def test_without_offsets_the_deformation_is_exact(genhead: GenHead) -> None:
    label = labels(0.1)
    views = cameras()
    assert genhead.offsets(label, 0) is None
    draw = torch.Generator().manual_seed(0)
    points = torch.rand(2, 100, 3, generator=draw) * 0.6 - 0.3
    searched = genhead.state(label, views)
    offsets = genhead.offsets(label, 24)
    stored = genhead.state(label, views, offsets)
    exact = searched.deform(points, "face")
    near = stored.deform(points, "face")
    error = (exact - near).norm(dim=2)
    moved = (exact - points).norm(dim=2)
    assert error.mean() < 0.5 * moved.mean()


def test_part_planes_show_only_through_the_masks(genhead: GenHead) -> None:
    label = labels()
    views = cameras()
    torch.nn.init.normal_(genhead.decoder.out_sigma.weight)
    with torch.no_grad():
        z = torch.randn(2, 32)
        planes = genhead.planes(z, label[:, Label.CONDITION])
        offsets = genhead.offsets(label, 8)
        state = genhead.state(label, views, offsets)
        before = genhead.rays(planes, state, views)
        # Planes 0 to 2 hold eyes and mouth.
        planes[:, :3] += 1.0
        after = genhead.rays(planes, state, views)
    change = (after.colour - before.colour).abs()
    change = change.amax(-1)
    at_eye = state.eye_mask_BVnn > 0
    at_mouth = state.mouth_mask_BVnn > 0
    covered = (at_eye | at_mouth).flatten(2)
    assert covered.any()
    assert change[covered].max() > 0.01
    assert change[~covered].max() == 0


def test_plane_features_are_those_of_the_face_planes_at_the_canonical_point(genhead: GenHead) -> None:
    label = labels()
    state = genhead.state(label, cameras())
    head = Label.split(label)
    deformation = genhead.deformation
    vertices, _ = deformation.meshes(head.shape, head.expression, head.jaw, head.eyes)
    face = deformation.flame.head.regions["face"]
    index = torch.as_tensor(face[:20])
    points = vertices[:, index]
    planes = torch.randn(2, 6, 8, 16, 16)
    found = genhead.plane_features(planes, points, state)
    # A vertex and its canonical place have the same feature.
    still = replace(state, deform=lambda points, part: points)
    canonical = deformation.canonical_V3[index]
    canonical = canonical.expand(2, -1, -1)
    wanted = genhead.plane_features(planes, canonical, still)
    assert torch.allclose(found, wanted, atol=5e-2)
    face_planes = planes[:, 3:]
    twice = torch.cat([face_planes, face_planes], 1)
    again = genhead.plane_features(twice, points, state)
    assert torch.equal(found, again)


def test_full_masks_replace_the_face() -> None:
    def samples(colour: float, sigma: float) -> tuple[Tensor, Tensor]:
        colours = torch.full((1, 4, 2), colour)
        return colours, torch.full((1, 4), sigma)

    face = samples(0.1, 1.0)
    eye = samples(0.5, 2.0)
    mouth = samples(0.9, 3.0)
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    nowhere = torch.zeros(1, 4, dtype=torch.bool)
    one = torch.ones(1, 1)
    zero = torch.zeros(1, 1)
    # Where no mask covers a sample, and where an eye's mask lies outside of its box, the face is seen.
    cases = (
        (everywhere, one, zero, eye),
        (nowhere, one, zero, face),
        (nowhere, zero, one, mouth),
        (everywhere, zero, zero, face),
    )
    for in_eye, eye_mask, mouth_mask, wanted in cases:
        colour, sigma = fuse_by_mask(face, eye, mouth, in_eye, eye_mask, mouth_mask)
        wanted_colour, wanted_sigma = wanted
        assert torch.allclose(colour, wanted_colour)
        assert torch.allclose(sigma, wanted_sigma)


def test_intrinsics_of_the_tests_are_those_of_the_labels() -> None:
    intrinsics = cameras()[0, 0, 16:]
    assert np.allclose(intrinsics.reshape(3, 3), INTRINSICS)
