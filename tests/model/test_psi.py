"""Psi: published counts, small sizes, and what motion scale, cameras and deformation may change."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.psi.network import Psi
from model.sizes import MotionSizes, PsiSizes, Sizes
from model.volume.planes import sample_planes_reference
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


def inputs(batch: int = 2, views: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, their motions, the driving ones, cameras."""
    turned = [look_at(0.3 * i, 0.1, 4.2, np.zeros(3)) for i in range(batch * views)]
    cameras = torch.from_numpy(np.stack(turned)).view(batch, views, 25)
    own, driving = torch.randn(2, batch, SMALL.motion.dims)
    images = torch.rand(batch, 3, 64, 64) * 2 - 1
    return images, own, driving, cameras


def test_published_counts() -> None:
    with torch.device("meta"):
        network = Psi(Sizes())
    motion = [parameter.numel() for parameter in network.motion_parameters()]
    base = [parameter.numel() for parameter in network.base_parameters()]
    assert (len(motion), sum(motion)) == (76, 101_931_008)
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
        "feature": (4, 8, 32, 32),
    }
    assert out.opacity.min() >= 0 and out.opacity.max() <= 1.0 + 1e-6
    assert out.depth.min() > 3.4 and out.depth.max() < 5.0
    composed = (out.foreground + 1) / 2 + (1 - out.opacity) * (out.background + 1) / 2
    torch.testing.assert_close(out.raw, 2 * composed - 1)
    assert torch.equal(out.raw, out.feature[:, :3])


@pytest.mark.parametrize(("image", "stride", "doublings"), [(32, 1, 1), (64, 2, 1), (64, 4, 2), (128, 1, 2)])
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
    assert planes.shape == (1, 3, 8, image // 2, image // 2)
    out = network.render(planes, network.background_feature(source), inputs(1, 1)[3])
    assert out.image.shape == (1, 3, image, image)


def test_motion_scale_zero_forgets_both_motions(psi: Psi) -> None:
    source, own, driving, _ = inputs()
    still = psi.planes(source, None, None, 0)
    torch.testing.assert_close(psi.planes(source, own, driving, torch.zeros(2, 1, 1)), still)
    moved = psi.planes(source, own, driving)
    assert (moved - still).norm() > 1e-3 * still.norm()
    assert not torch.equal(moved, psi.planes(source, driving, driving))
    assert not torch.equal(moved, psi.planes(source, own, own))
    with pytest.raises(ValueError, match="motion embedding is needed"):
        psi.planes(source, None, None)


def test_views_are_rendered_as_if_alone(psi: Psi) -> None:
    source, own, driving, cameras = inputs()
    planes = psi.planes(source, own, driving)
    background = psi.background_feature(source)
    together = psi.render(planes, background, cameras)
    alone = psi.render(planes[1:], background[1:], cameras[1:, :1])
    torch.testing.assert_close(together.image[2:3], alone.image, atol=1e-4, rtol=1e-4)
    assert torch.equal(together.background[0], together.background[1])


def test_jitter_comes_from_the_generator_alone(psi: Psi) -> None:
    arguments = inputs(1, 1)
    fixed, repeated = psi(*arguments), psi(*arguments)
    assert torch.equal(fixed.image, repeated.image)
    jittered = [psi(*arguments, generator=torch.Generator().manual_seed(seed)).image for seed in (1, 1, 2)]
    assert torch.equal(jittered[0], jittered[1]) and not torch.equal(jittered[0], jittered[2])


def test_deformation_moves_the_points(psi: Psi) -> None:
    arguments = inputs(1, 1)
    calls = []

    def deform(points: torch.Tensor) -> torch.Tensor:
        calls.append(points.shape)
        return points * 0 + 10.0

    away = psi(*arguments, deform=deform)
    assert calls == [(1, 32 * 32 * 6, 3)] * 2
    same = psi(*arguments, deform=lambda points: points)
    assert torch.equal(same.image, psi(*arguments).image)
    assert not torch.equal(away.image, same.image)


def test_gradients_reach_every_parameter(psi: Psi) -> None:
    # The style of super-resolution: zero in a fresh network, which would hide the weights that read it.
    torch.nn.init.normal_(psi.w_avg)
    out = psi(*inputs(), generator=torch.Generator().manual_seed(0))
    (out.image.square().mean() + out.opacity.mean()).backward()
    gradients = {name: p.grad for name, p in psi.named_parameters() if not name.endswith("noise_strength")}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []


def test_plane_features_and_density(psi: Psi) -> None:
    planes = torch.randn(2, 3, 8, 32, 32)
    points = torch.rand(2, 50, 3) - 0.5
    found = psi.plane_features(planes, points)
    wanted = sample_planes_reference(planes, points, SMALL.box)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert psi.density(planes, points).shape == (2, 50)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image": 48}, "image must be a power of two"),
        ({"rays": 16}, "superresolution_channels"),
        ({"plane_resolution": 64}, "plane_resolution must be half of image"),
        ({"samples": 2}, "samples"),
        ({"psi": replace(SMALL.psi, canonical_heads=5)}, "psi.canonical_heads"),
        ({"psi": replace(SMALL.psi, patch_stride=16)}, "psi.patch_stride"),
        ({"psi": replace(SMALL.psi, encoder_blocks=(1, 1))}, "psi.encoder_blocks"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(SMALL, **change)
