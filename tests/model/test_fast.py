"""The fast path of Psi gives what the reference path gives, and what it leaves out stays within its bounds.

Full frame, cached source, several views, batches, both number types, fog and an opaque head, the neck
field. What the published networks give is in tests/parity.
"""

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from model.fast import layers, renderer
from model.fast.layers import Convolution, activate, attend, to_map
from model.fast.psi import FastPsi
from model.fast.renderer import NOTHING, SHARE, side_by_side
from model.psi.reference import ReferencePsi
from model.sizes import Sizes
from pipeline.bench.clock import Timed, measured
from pipeline.bench.floor import PARTS
from pipeline.bench.inference import TYPES, psnr, run_fast, run_reference
from pipeline.bench.scene import CASES, BenchCase, Scene
from pipeline.parity.file import relative_error
from pipeline.parity.numbers import NumberRule
from tests.support.sizes import SMOKE_SIZES

# Stride, dilation, groups and side of convolutions.
GEOMETRIES = (
    (1, 1, 1, 3),
    (2, 1, 1, 3),
    (1, 3, 1, 3),
    (1, 1, 8, 3),
    (1, 1, 1, 1),
    (2, 1, 1, 7),
)


def fewest_layers() -> Sizes:
    """Smoke sizes with one block of every kind, as the time of a compiler grows with their number."""
    psi = replace(SMOKE_SIZES.psi, encoder_blocks=(1, 1, 1, 1), blocks_neutral=1, blocks_motion=1)
    return replace(SMOKE_SIZES, psi=psi)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(SMOKE_SIZES, NumberRule())


@pytest.fixture(scope="module")
def references(scene: Scene) -> dict[tuple[str, int, int], tuple[Timed, torch.Tensor]]:
    """Every picture of every case by the reference path in float32, and what it took."""
    found = {}
    for case in CASES:
        for head in range(case.batch):
            for view in range(case.views):
                run = partial(run_reference, scene, case, torch.float32, head, view)
                found[case.name, head, view] = measured(run, 0.0)
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", TYPES)
def test_every_case_of_the_benchmark_agrees(
    scene: Scene,
    references: dict,
    case: BenchCase,
    name: str,
) -> None:
    wanted = [reference for (case_name, _, _), reference in references.items() if case_name == case.name]
    pictures = torch.cat([picture for _, picture in wanted])
    gflop = sum(timed.gflop for timed, _ in wanted)
    fast = FastPsi(scene.fog if case.fog else scene.psi, TYPES[name])
    images, own, _, _ = scene.inputs(case)
    known = fast.source(images, own, case.scale) if case.cached else None
    colours: list[float] = []
    timed, found = measured(partial(run_fast, fast, scene, case, known, colours), 0.0)
    assert found.shape == (case.pictures, 3, 32, 32)
    assert psnr(found, pictures) >= (50 if name == "fp32" else 40)
    assert colours[0] == 1.0 if case.fog else 0 < colours[0] < 0.5
    assert list(timed.parts) == [part for part in PARTS if case.count(part)]
    assert 0 < timed.gflop < 1.3 * gflop


def test_all_parts_of_the_picture_agree(scene: Scene) -> None:
    inputs = scene.inputs(BenchCase("", batch=2, views=3))
    wanted = ReferencePsi(scene.fog)(*inputs)
    plain = scene.fog(*inputs)
    fast = FastPsi(scene.fog)(*inputs)
    for part in ("image", "raw", "foreground", "background", "opacity", "depth", "feature"):
        for found in (plain, fast):
            torch.testing.assert_close(getattr(found, part), getattr(wanted, part), atol=2e-4, rtol=1e-4)


def test_threads_share_the_rays(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = scene.inputs(BenchCase("", batch=2, views=3))
    fast = FastPsi(scene.psi)
    monkeypatch.setattr(renderer, "POINTS", 512)
    wanted = fast(*inputs)
    try:
        torch.set_num_threads(3)
        found = fast(*inputs)
        with pytest.raises(ZeroDivisionError):
            side_by_side(lambda piece: 1 // piece, range(9), alone=False)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(found.feature, wanted.feature, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_neck_field(scene: Scene, batch: int) -> None:
    case = BenchCase("", batch=batch, views=2)
    images, own, driving, cameras = scene.inputs(case)
    asked = []

    def deform(points: torch.Tensor) -> torch.Tensor:
        asked.append(points.shape)
        return points * 0.9 + 0.02 * torch.arange(batch)[:, None, None]

    fast = FastPsi(scene.psi)
    source = fast.source(images, own)
    planes = scene.planes(fast.planes(source, driving), case)
    found = fast.render(planes, source, cameras, deform)
    wanted = ReferencePsi(scene.psi).render(planes, images, cameras, deform)
    undeformed = fast.render(planes, source, cameras)
    assert psnr(found.image, wanted.image) > 60
    assert psnr(found.image, undeformed.image) < 40
    assert {(shape[0], shape[2]) for shape in asked} == {(batch, 3)}


def test_what_is_left_out_stays_within_the_bound(scene: Scene) -> None:
    case = BenchCase("", views=2)
    images, own, driving, cameras = scene.inputs(case)
    everything = FastPsi(scene.psi, nothing=0.0, share=0.0)
    some = FastPsi(scene.psi)
    source = some.source(images, own)
    planes = scene.planes(some.planes(source, driving), case)
    wanted = everything.render(planes, source, cameras)
    found = some.render(planes, source, cameras)
    exact = ReferencePsi(scene.psi).render(planes, images, cameras)
    torch.testing.assert_close(wanted.feature, exact.feature, atol=1e-4, rtol=1e-4)
    # Features lie in [-1, 1], so that they differ by twice the opacity.
    missing = NOTHING + SHARE * (SMOKE_SIZES.samples + SMOKE_SIZES.samples_fine)
    assert (found.feature - wanted.feature).abs().max() <= 2 * missing + 1e-4
    assert (found.opacity - wanted.opacity).abs().max() <= NOTHING + 1e-4
    opaque = wanted.opacity > 0.5
    torch.testing.assert_close(found.depth[opaque], wanted.depth[opaque], atol=1e-4, rtol=1e-4)
    assert opaque.any() and (wanted.opacity < NOTHING).any()


def test_empty_space(scene: Scene) -> None:
    images, own, driving, cameras = scene.inputs(BenchCase(""))
    fast = FastPsi(scene.psi)
    source = fast.source(images, own)
    planes = torch.zeros_like(fast.planes(source, driving))
    found = fast.render(planes, source, cameras)
    wanted = ReferencePsi(scene.psi).render(planes, images, cameras)
    assert found.opacity.max() < 1e-3
    assert torch.isfinite(found.depth).all() and torch.isfinite(found.image).all()
    assert psnr(found.image, wanted.image) > 60


def test_one_source_serves_many_motions(scene: Scene) -> None:
    images, own, driving, _ = scene.inputs(BenchCase("", batch=2))
    fast = FastPsi(scene.fog)
    source = fast.source(images, own)
    for motion in (driving, own, driving):
        found = fast.planes(source, motion)
        wanted = scene.fog.planes(images, own, motion)
        assert relative_error(found.numpy(), wanted.numpy()) < 1e-5


def test_motion_scale(scene: Scene) -> None:
    images, own, driving, _ = scene.inputs(BenchCase("", batch=2))
    fast = FastPsi(scene.fog)
    still = fast.planes(fast.source(images, None, 0.0), None)
    wanted = scene.fog.planes(images, None, None, 0.0)
    assert relative_error(still.numpy(), wanted.numpy()) < 1e-5
    each = torch.tensor([0.0, 0.7])[:, None, None]
    mixed = fast.planes(fast.source(images, own, each), driving)
    wanted = scene.fog.planes(images, own, driving, each)
    assert relative_error(mixed.numpy(), wanted.numpy()) < 1e-5
    with pytest.raises(ValueError, match="motion embedding is needed"):
        fast.source(images, None)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("name", layers.ACTIVATIONS)
def test_convolution(name: str, onednn: bool) -> None:
    x = torch.randn(2, 8, 12, 10)
    for stride, dilation, groups, side in GEOMETRIES:
        weight = torch.randn(16, 8 // groups, side, side)
        bias = torch.randn(16)
        layer = Convolution(weight, bias, name, stride, dilation, groups)
        layer.onednn = onednn and layer.onednn
        plain = F.conv2d(x, weight, bias, stride, dilation * (side // 2), dilation, groups)
        # The second time the weights are laid out already.
        for _ in range(2):
            torch.testing.assert_close(layer(x), activate(plain, name), atol=1e-4, rtol=1e-4)
        if name in ("none", "relu"):
            added = layer(x, plain)
            torch.testing.assert_close(added, activate(2 * plain, name), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(2, 4, 4, 6), (2, 16, 32, 1024)])
def test_attention(size: tuple[int, int, int, int]) -> None:
    batch, height, width, count = size
    query, key, value = (torch.randn(3, batch, n, 8) for n in (height * width, count, count))
    wanted_3BNC = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    queries = [to_map(head.unflatten(1, (height, width))) for head in query]
    mixed = attend(queries, list(key), list(value))
    found_BN3C = mixed.flatten(2).mT.unflatten(2, (3, -1))
    torch.testing.assert_close(found_BN3C, wanted_3BNC.permute(1, 2, 0, 3), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler"
)
def test_compiled() -> None:
    scene = Scene(fewest_layers(), NumberRule())
    inputs = scene.inputs(BenchCase("", batch=2, views=3))
    found = FastPsi(scene.psi, compiled=True)(*inputs)
    wanted = FastPsi(scene.psi)(*inputs)
    torch.testing.assert_close(found.image, wanted.image, atol=1e-4, rtol=1e-4)


def test_batches_of_different_heads(scene: Scene) -> None:
    """A head that fills the picture and an empty one share their pieces of work."""
    case = BenchCase("", batch=2)
    images, own, driving, cameras = scene.inputs(case)
    fast = FastPsi(scene.psi)
    source = fast.source(images, own)
    planes = scene.planes(fast.planes(source, driving), case)
    planes = torch.cat([planes[:1], torch.zeros_like(planes[1:])])
    found = fast.render(planes, source, cameras)
    own_source = replace(source, background_BFnn=source.background_BFnn[:1])
    alone = fast.render(planes[:1], own_source, cameras[:1])
    torch.testing.assert_close(found.image[:1], alone.image, atol=1e-4, rtol=1e-4)
    assert found.opacity[1].max() < 1e-3
