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
from torch import Tensor
from torch.testing import assert_close

from model.fast import layers, renderer
from model.fast.layers import Convolution, activate, attend, to_map
from model.fast.psi import FastPsi
from model.fast.renderer import NOTHING, SHARE, side_by_side
from model.head.deform import NeckField
from model.head.flame import Flame
from model.head.label import Label
from model.psi.reference import ReferencePsi
from model.sizes import Sizes
from model.volume.planes import Planes
from pipeline.bench.clock import Timed, measured
from pipeline.bench.floor import PARTS
from pipeline.bench.inference import TYPES, psnr, run_fast, run_reference
from pipeline.bench.scene import CASES, BenchCase, Scene
from pipeline.geometry.neck import TurningNeck
from pipeline.geometry.standin import standin
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


SEVERAL = BenchCase("", batch=2, views=3)
# What float32 leaves of sums in another order.
assert_near = partial(assert_close, atol=1e-4, rtol=1e-4)


def fewest_layers() -> Sizes:
    """Smoke sizes with one block of every kind, as the time of a compiler grows with their number."""
    psi = replace(
        SMOKE_SIZES.psi,
        encoder_blocks=(1, 1, 1, 1),
        blocks_neutral=1,
        blocks_motion=1,
    )
    return replace(SMOKE_SIZES, psi=psi)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(SMOKE_SIZES, NumberRule())


@pytest.fixture(scope="module")
def references(scene: Scene) -> dict[tuple[str, int, int], tuple[Timed, Tensor]]:
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
    pictures = []
    gflop = 0.0
    for (case_name, _, _), (timed, picture) in references.items():
        if case_name == case.name:
            pictures.append(picture)
            gflop += timed.gflop
    psi = scene.fog if case.fog else scene.psi
    fast = FastPsi(psi, TYPES[name])
    known = None
    if case.cached:
        images, own, _, _ = scene.inputs(case)
        known = fast.source(images, own, case.scale, scene.cameras_of_sources(case))
    colours: list[float] = []
    run = partial(run_fast, fast, scene, case, known, colours)
    timed, found = measured(run, 0.0)
    assert found.shape == (case.pictures, 3, 32, 32)
    # Bfloat16 has eight bits.
    least = 50 if name == "fp32" else 40
    assert psnr(found, torch.cat(pictures)) >= least
    # In fog every sample counts, before an opaque head less than half of them.
    share = colours[0]
    assert share == 1.0 if case.fog else 0 < share < 0.5
    needed = [part for part in PARTS if case.count(part)]
    assert list(timed.parts) == needed
    assert 0 < timed.gflop < 1.3 * gflop


def test_all_parts_of_the_picture_agree(scene: Scene) -> None:
    fog = scene.fog
    inputs = scene.inputs(SEVERAL)
    taken_by = scene.cameras_of_sources(SEVERAL)
    wanted = ReferencePsi(fog)(*inputs, camera_source_B25=taken_by)
    plain = fog(*inputs, camera_source_B25=taken_by)
    fast = FastPsi(fog)(*inputs, camera_source_B25=taken_by)
    for part, values in vars(wanted).items():
        for found in (plain, fast):
            own = getattr(found, part)
            assert_close(own, values, atol=2e-4, rtol=1e-4)


def test_threads_share_the_rays(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = scene.inputs(SEVERAL)
    taken_by = scene.cameras_of_sources(SEVERAL)
    fast = partial(FastPsi(scene.psi), camera_source_B25=taken_by)
    # Many pieces, more than there are threads.
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
    assert_near(found.feature, wanted.feature)


@pytest.mark.parametrize("batch", [1, 2])
def test_neck_field(scene: Scene, batch: int) -> None:
    case = BenchCase("", batch=batch, views=2)
    images, own, driving, cameras = scene.inputs(case)
    asked = []

    def deform(points: Tensor) -> Tensor:
        asked.append(points.shape)
        # Each head is moved by another distance.
        shift = 0.02 * torch.arange(batch)
        return points * 0.9 + shift[:, None, None]

    fast = FastPsi(scene.psi)
    source = fast.source(images, own, 1.0, scene.cameras_of_sources(case))
    planes = fast.planes(source, driving)
    planes = scene.planes(planes, case)
    found = fast.render(planes, source, cameras, deform)
    reference = ReferencePsi(scene.psi)
    wanted = reference.render(planes, images, cameras, deform)
    undeformed = fast.render(planes, source, cameras)
    assert psnr(found.image, wanted.image) > 60
    assert psnr(found.image, undeformed.image) < 40
    for heads, _, coordinates in asked:
        assert heads == batch
        assert coordinates == 3


def turned_necks(count: int) -> tuple[NeckField, NeckField]:
    """Fields of heads that are turned more and more: to the head at rest, and from there to other heads."""
    flame = Flame(standin())
    labels = torch.zeros(2 * count, Label.SIZE)
    labels[:, Label.NECK.start + 1] = torch.linspace(0.4, -0.4, 2 * count)
    neck = TurningNeck(flame)
    return neck.field(labels[:count]), neck.field(labels[count:], posing=True)


@pytest.mark.parametrize("batch", [1, 2])
def test_turned_necks_of_source_and_driver(scene: Scene, batch: int) -> None:
    case = BenchCase("", batch=batch, views=2)
    images, own, driving, cameras = scene.inputs(case)
    unposing, posing = turned_necks(batch)
    fast, reference = FastPsi(scene.psi), ReferencePsi(scene.psi)
    taken_by = scene.cameras_of_sources(case), posing
    source = fast.source(images, own, 1.0, *taken_by)
    found = scene_of(scene, fast.planes(source, driving), case)
    wanted = scene_of(scene, reference.planes(images, own, driving, 1.0, *taken_by), case)
    fast_picture = fast.render(found, source, cameras, unposing)
    picture = reference.render(wanted, images, cameras, unposing)
    plain = scene.psi.render(wanted, scene.psi.background_feature(images), cameras, unposing)
    assert psnr(fast_picture.image, picture.image) > 60
    assert psnr(plain.image, picture.image) > 60
    # Both turns show, the source's by what is found in the portrait.
    at_rest = reference.render(wanted, images, cameras)
    unturned = reference.render(replace(wanted, posing=None), images, cameras, unposing)
    assert psnr(at_rest.image, picture.image) < 45
    assert not torch.equal(unturned.image, picture.image)


def test_encoders_that_see_a_smaller_portrait() -> None:
    side = 2 * SMOKE_SIZES.image
    channels = SMOKE_SIZES.superresolution_channels
    sizes = replace(
        SMOKE_SIZES,
        image=side,
        superresolution_channels=(*channels, *channels),
        psi=replace(SMOKE_SIZES.psi, encoder_input=SMOKE_SIZES.image),
    )
    scene = Scene(sizes, NumberRule())
    case = BenchCase("", batch=2, views=2)
    images, own, driving, cameras = scene.inputs(case)
    taken_by = scene.cameras_of_sources(case)
    fast, reference = FastPsi(scene.psi), ReferencePsi(scene.psi)
    source = fast.source(images, own, 1.0, taken_by)
    planes = fast.planes(source, driving)
    found = fast.render(scene_of(scene, planes, case), source, cameras)
    wanted = reference.planes(images, own, driving, 1.0, taken_by)
    # The encoders see the means of four pixels; what is projected sees each of them.
    checks = 0.2 * (-1.0) ** torch.arange(side)
    checked = reference.planes(images + checks, own, driving, 1.0, taken_by)
    assert_close(checked.triplanes_B3CRR, wanted.triplanes_B3CRR, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(checked.portrait_BCSS, wanted.portrait_BCSS, atol=1e-2)
    picture = reference.render(scene_of(scene, wanted, case), images, cameras)
    assert found.image.shape == (4, 3, side, side)
    assert psnr(found.image, picture.image) > 60


def scene_of(scene: Scene, planes: Planes, case: BenchCase) -> Planes:
    """The opaque head of the scene, with what its portraits show."""
    portrait = planes.portrait_BCSS.clone()
    return replace(scene.planes(planes, case), portrait_BCSS=portrait)


def test_what_is_left_out_stays_within_the_bound(scene: Scene) -> None:
    case = BenchCase("", views=2)
    images, own, driving, cameras = scene.inputs(case)
    everything = FastPsi(scene.psi, nothing=0.0, share=0.0)
    some = FastPsi(scene.psi)
    source = some.source(images, own, 1.0, scene.cameras_of_sources(case))
    planes = some.planes(source, driving)
    planes = scene.planes(planes, case)
    wanted = everything.render(planes, source, cameras)
    found = some.render(planes, source, cameras)
    reference = ReferencePsi(scene.psi)
    exact = reference.render(planes, images, cameras)
    assert_near(wanted.feature, exact.feature)
    # Features lie in [-1, 1], so that they differ by twice the opacity.
    samples = SMOKE_SIZES.samples + SMOKE_SIZES.samples_fine
    missing = NOTHING + SHARE * samples
    feature_error = (found.feature - wanted.feature).abs()
    opacity_error = (found.opacity - wanted.opacity).abs()
    assert feature_error.max() <= 2 * missing + 1e-4
    assert opacity_error.max() <= NOTHING + 1e-4
    opaque = wanted.opacity > 0.5
    depth = found.depth[opaque]
    assert_near(depth, wanted.depth[opaque])
    assert opaque.any()
    assert (wanted.opacity < NOTHING).any()


def empty(planes: Planes) -> Planes:
    """Planes without anything, seen by the same camera."""
    nothing = torch.zeros_like(planes.triplanes_B3CRR), torch.zeros_like(planes.portrait_BCSS)
    return Planes(*nothing, planes.camera_B25, detail_BDSS=planes.detail_BDSS)


def test_empty_space(scene: Scene) -> None:
    case = BenchCase("")
    images, own, driving, cameras = scene.inputs(case)
    fast = FastPsi(scene.psi)
    source = fast.source(images, own, 1.0, scene.cameras_of_sources(case))
    planes = fast.planes(source, driving)
    planes = empty(planes)
    found = fast.render(planes, source, cameras)
    reference = ReferencePsi(scene.psi)
    wanted = reference.render(planes, images, cameras)
    assert found.opacity.max() < 1e-3
    assert torch.isfinite(found.depth).all()
    assert torch.isfinite(found.image).all()
    assert psnr(found.image, wanted.image) > 60


def difference(found: Planes, wanted: Planes) -> float:
    """Of the tri-planes, relative."""
    return relative_error(found.triplanes_B3CRR.numpy(), wanted.triplanes_B3CRR.numpy())


def test_one_source_serves_many_motions(scene: Scene) -> None:
    fog = scene.fog
    images, own, driving, _ = scene.inputs(SEVERAL)
    fast = FastPsi(fog)
    source = fast.source(images, own, 1.0, scene.cameras_of_sources(SEVERAL))
    # The first one once more: no motion may leave anything in the source.
    for motion in (driving, own, driving):
        found = fast.planes(source, motion)
        wanted = fog.planes(images, own, motion, 1.0, scene.cameras_of_sources(SEVERAL))
        assert difference(found, wanted) < 1e-5


def test_motion_scale(scene: Scene) -> None:
    fog = scene.fog
    images, own, driving, _ = scene.inputs(SEVERAL)
    taken_by = scene.cameras_of_sources(SEVERAL)
    fast = FastPsi(fog)
    source = fast.source(images, None, 0.0, taken_by)
    still = fast.planes(source, None)
    wanted = fog.planes(images, None, None, 0.0, taken_by)
    assert difference(still, wanted) < 1e-5
    # A scale for each sample.
    each = torch.tensor([0.0, 0.7])[:, None, None]
    source = fast.source(images, own, each, taken_by)
    mixed = fast.planes(source, driving)
    wanted = fog.planes(images, own, driving, each, taken_by)
    assert difference(mixed, wanted) < 1e-5
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
        padding = dilation * (side // 2)
        plain = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        # The second time the weights are laid out already.
        for _ in range(2):
            assert_near(layer(x), activate(plain, name))
        if name in ("none", "relu"):
            added = layer(x, plain)
            assert_near(added, activate(2 * plain, name))


@pytest.mark.parametrize("size", [(2, 4, 4, 6), (2, 16, 32, 1024)])
def test_attention(size: tuple[int, int, int, int]) -> None:
    batch, height, width, count = size
    grid = (height, width)
    # Three heads of eight channels.
    query = torch.randn(3, batch, height * width, 8)
    key, value = torch.randn(2, 3, batch, count, 8)
    wanted_3BNC = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    queries = [to_map(head.unflatten(1, grid)) for head in query]
    mixed = attend(queries, list(key), list(value))
    mixed_BNC = mixed.flatten(2).mT
    found_BN3C = mixed_BNC.unflatten(2, (3, -1))
    wanted_BN3C = wanted_3BNC.permute(1, 2, 0, 3)
    assert_close(found_BN3C, wanted_BN3C, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler"
)
def test_compiled() -> None:
    scene = Scene(fewest_layers(), NumberRule())
    inputs = scene.inputs(SEVERAL)
    taken_by = scene.cameras_of_sources(SEVERAL)
    compiled = FastPsi(scene.psi, compiled=True)
    found = compiled(*inputs, camera_source_B25=taken_by)
    wanted = FastPsi(scene.psi)(*inputs, camera_source_B25=taken_by)
    assert_near(found.image, wanted.image)


def test_batches_of_different_heads(scene: Scene) -> None:
    """A head that fills the picture and an empty one share their pieces of work."""
    case = BenchCase("", batch=2)
    images, own, driving, cameras = scene.inputs(case)
    fast = FastPsi(scene.psi)
    source = fast.source(images, own, 1.0, scene.cameras_of_sources(case))
    planes = fast.planes(source, driving)
    planes = scene.planes(planes, case)
    with torch.inference_mode():
        planes.triplanes_B3CRR[1] = 0.0
        planes.portrait_BCSS[1] = 0.0
    found = fast.render(planes, source, cameras)
    own_background = source.background_BFnn[:1]
    own_source = replace(source, background_BFnn=own_background)
    alone = fast.render(planes[:1], own_source, cameras[:1])
    first = found.image[:1]
    assert_near(first, alone.image)
    assert found.opacity[1].max() < 1e-3
