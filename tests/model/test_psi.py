"""Psi: published counts, small sizes, and what motion scale, cameras and deformation may change."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from model.psi.network import Psi
from model.sizes import MotionSizes, PsiSizes, Sizes
from model.volume.planes import Planes, sample_planes_reference
from pipeline.geometry.camera import look_at

SMALL = Sizes(
    image=64,
    rays=32,
    samples=6,
    samples_fine=6,
    plane_resolution=32,
    plane_channels=8,
    feature_channels=8,
    decoder_hidden=16,
    w_dim=8,
    superresolution_channels=(8,),
    psi=PsiSizes(
        encoder_width=8,
        encoder_blocks=(1, 1, 1, 1),
        global_channels=16,
        detail_stem=8,
        detail_channels=12,
        motion_hidden=16,
        motion_tokens=4,
        dim=32,
        patch_stride=1,
        canonical_upsample_channels=16,
        blocks_neutral=1,
        blocks_motion=1,
        decoder_channels=16,
        background_width=4,
    ),
    motion=MotionSizes(feature=4),
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def psi() -> Psi:
    torch.manual_seed(0)
    network = Psi(SMALL)
    # There is something to see.
    torch.nn.init.normal_(network.decoder.out_sigma.weight, std=10.0)
    return network


def inputs(batch: int = 2, views: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, their motions, the driving ones, cameras."""
    centre = np.zeros(3)
    turned = [look_at(0.3 * i, 0.1, 4.2, centre) for i in range(batch * views)]
    cameras = torch.from_numpy(np.stack(turned))
    cameras = cameras.view(batch, views, 25)
    own, driving = torch.randn(2, batch, SMALL.motion.dims)
    images = torch.rand(batch, 3, 64, 64) * 2 - 1
    return images, own, driving, cameras


def test_published_counts() -> None:
    with torch.device("meta"):
        network = Psi(Sizes())
    # Tensors and numbers as facts 1.8 has them.
    motion = [parameter.numel() for parameter in network.motion_parameters()]
    base = [parameter.numel() for parameter in network.base_parameters()]
    assert len(motion) == 76
    assert sum(motion) == 101_931_008
    assert sum(base) == 224_766_123 - 101_931_008


def test_shapes_and_ranges(psi: Psi) -> None:
    out = psi(*inputs())
    assert {name: tuple(values.shape) for name, values in vars(out).items()} == {
        "image": (4, 3, 64, 64),
        "raw": (4, 3, 32, 32),
        "foreground": (4, 3, 32, 32),
        "background": (4, 3, 32, 32),
        "opacity": (4, 1, 32, 32),
        "depth": (4, 1, 32, 32),
        "thickness": (4, 1, 32, 32),
        "feature": (4, 8, 32, 32),
    }
    assert out.opacity.min() >= 0
    assert out.opacity.max() <= 1.0 + 1e-6
    assert out.depth.min() > 3.4
    assert out.depth.max() < 5.0
    foreground = (out.foreground + 1) / 2
    background = (out.background + 1) / 2
    composed = foreground + (1 - out.opacity) * background
    assert_close(out.raw, 2 * composed - 1)
    assert torch.equal(out.raw, out.feature[:, :3])


OTHER_SIZES = [
    (32, 1, 1),
    (64, 2, 1),
    (64, 4, 2),
    (128, 1, 2),
]


@pytest.mark.parametrize(("image", "stride", "doublings"), OTHER_SIZES)
def test_other_sizes(
    image: int,
    stride: int,
    doublings: int,
) -> None:
    sizes = replace(
        SMALL,
        image=image,
        rays=image >> doublings,
        plane_resolution=image // 2,
        superresolution_channels=(8,) * doublings,
        psi=replace(SMALL.psi, patch_stride=stride),
    )
    network = Psi(sizes)
    source = torch.rand(1, 3, image, image)
    planes = network.planes(source, None, None, motion_scale=0)
    half = image // 2
    assert planes.triplanes_B3CRR.shape == (1, 3, 8, half, half)
    background = network.background_feature(source)
    _, _, _, cameras = inputs(1, 1)
    out = network.render(planes, background, cameras)
    assert out.image.shape == (1, 3, image, image)


def test_motion_scale_zero_forgets_both_motions(psi: Psi) -> None:
    source, own, driving, _ = inputs()
    still = psi.planes(source, None, None, 0).triplanes_B3CRR
    # A scale for each sample runs all layers, and their results count for nothing.
    each = torch.zeros(2, 1, 1)
    forgotten = psi.planes(source, own, driving, each).triplanes_B3CRR
    assert_close(forgotten, still)
    moved = psi.planes(source, own, driving).triplanes_B3CRR
    change = moved - still
    assert change.norm() > 1e-3 * still.norm()
    other_source = psi.planes(source, driving, driving).triplanes_B3CRR
    other_driving = psi.planes(source, own, own).triplanes_B3CRR
    assert not torch.equal(moved, other_source)
    assert not torch.equal(moved, other_driving)
    with pytest.raises(ValueError, match="motion embedding is needed"):
        psi.planes(source, None, None)


def test_views_are_rendered_as_if_alone(psi: Psi) -> None:
    source, own, driving, cameras = inputs()
    planes = psi.planes(source, own, driving)
    background = psi.background_feature(source)
    together = psi.render(planes, background, cameras)
    # The first view of the second head.
    view = cameras[1:, :1]
    alone = psi.render(planes[1:], background[1:], view)
    assert_close(together.image[2:3], alone.image, atol=1e-4, rtol=1e-4)
    first, second, *_ = together.background
    assert torch.equal(first, second)


def test_jitter_comes_from_the_generator_alone(psi: Psi) -> None:
    arguments = inputs(1, 1)
    fixed = psi(*arguments)
    repeated = psi(*arguments)
    assert torch.equal(fixed.image, repeated.image)

    def jittered(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return psi(*arguments, generator=generator).image

    first = jittered(1)
    assert torch.equal(first, jittered(1))
    assert not torch.equal(first, jittered(2))


def test_deformation_moves_the_points(psi: Psi) -> None:
    arguments = inputs(1, 1)
    calls = []

    def deform(points: Tensor) -> Tensor:
        calls.append(points.shape)
        return points * 0 + 10.0

    # Far outside of the box nothing is left. Both passes ask for all their samples.
    away = psi(*arguments, deform=deform)
    assert calls == [(1, 32 * 32 * 6, 3)] * 2
    same = psi(*arguments, deform=lambda points: points)
    assert torch.equal(same.image, psi(*arguments).image)
    assert not torch.equal(away.image, same.image)


def test_gradients_reach_every_parameter(psi: Psi) -> None:
    # The style of super-resolution: zero in a fresh network, which would hide the weights that read it.
    torch.nn.init.normal_(psi.w_avg)
    generator = torch.Generator().manual_seed(0)
    out = psi(*inputs(), generator=generator)
    loss = out.image.square().mean() + out.opacity.mean()
    loss.backward()
    # No noise is added, so that its strength has no gradient.
    for name, parameter in psi.named_parameters():
        if not name.endswith("noise_strength"):
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


def test_plane_features_and_density(psi: Psi) -> None:
    planes = Planes(torch.randn(2, 3, 8, 32, 32))
    points = torch.rand(2, 50, 3) - 0.5
    found = psi.plane_features(planes, points)
    wanted = sample_planes_reference(planes.triplanes_B3CRR, points, SMALL.box)
    assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert psi.density(planes, points).shape == (2, 50)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image": 48}, "image must be a power of two"),
        ({"rays": 16}, "superresolution_channels"),
        ({"plane_resolution": 64}, "plane_resolution must be half of what the encoders see"),
        ({"psi": replace(SMALL.psi, encoder_input=128)}, "psi.encoder_input must be 0, or a power of two"),
        ({"psi": replace(SMALL.psi, encoder_input=48)}, "psi.encoder_input must be 0, or a power of two"),
        ({"samples": 2}, "samples"),
        ({"psi": replace(SMALL.psi, canonical_heads=5)}, "psi.canonical_heads"),
        ({"psi": replace(SMALL.psi, patch_stride=16)}, "psi.patch_stride"),
        ({"psi": replace(SMALL.psi, encoder_blocks=(1, 1))}, "psi.encoder_blocks"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(SMALL, **change)
