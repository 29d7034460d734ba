"""The fast path of Psi gives what the reference path gives: full frame, cached source, several views,
batches, both number types, fog and an opaque head, the neck field; what it leaves out stays within its
bounds; `psi4d bench` counts and times it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.fast import layers, renderer
from model.fast.layers import Convolution, activate, attend
from model.fast.psi import FastPsi
from model.fast.renderer import NOTHING, SHARE, side_by_side
from model.psi.network import EQUALISED, Psi
from model.psi.reference import ReferencePsi
from model.sizes import Sizes
from pipeline.bench.clock import counted, measured
from pipeline.bench.floor import PARTS, Rates, floor, operations
from pipeline.bench.inference import psnr, run_fast, run_reference
from pipeline.bench.scene import CASES, BenchCase, Scene
from pipeline.parity.file import read_fixture, relative_error
from pipeline.parity.numbers import NumberRule, camera
from tests.published import PARITY
from tests.support.sizes import SMOKE_SIZES

ROOT = Path(__file__).parents[2]
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(SMOKE_SIZES, NumberRule())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", TYPES)
def test_every_case_of_the_benchmark_agrees(scene: Scene, case: BenchCase, name: str) -> None:
    pictures = [(head, view) for head in range(case.batch) for view in range(case.views)]
    wanted = [measured(partial(run_reference, scene, case, torch.float32, *place), 0.0) for place in pictures]
    colours: list[float] = []
    fast = FastPsi(scene.fog if case.fog else scene.psi, TYPES[name])
    known = fast.source(*scene.inputs(case)[:2], case.scale) if case.cached else None
    timed, found = measured(partial(run_fast, fast, scene, case, known, colours), 0.0)
    assert found.shape == (case.batch * case.views, 3, 32, 32)
    assert psnr(found, torch.cat([image for _, image in wanted])) >= (50 if name == "fp32" else 40)
    assert colours[0] == 1.0 if case.fog else 0 < colours[0] < 0.5
    assert list(timed.parts) == [part for part in PARTS if not (case.cached and part == "source")]
    assert 0 < timed.gflop < 1.3 * sum(plain.gflop for plain, _ in wanted)


def test_all_parts_of_the_picture_agree(scene: Scene) -> None:
    case = BenchCase("", batch=2, views=3)
    images, own, driving, cameras = scene.inputs(case)
    wanted = ReferencePsi(scene.fog)(images, own, driving, cameras)
    plain = scene.fog(images, own, driving, cameras)
    found = FastPsi(scene.fog)(images, own, driving, cameras)
    for part in ("image", "raw", "foreground", "background", "opacity", "depth", "feature"):
        for other in (plain, found):
            torch.testing.assert_close(getattr(other, part), getattr(wanted, part), atol=2e-4, rtol=1e-4)


def test_threads_share_the_rays(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    images, own, driving, cameras = scene.inputs(BenchCase("", batch=2, views=3))
    fast = FastPsi(scene.psi)
    monkeypatch.setattr(renderer, "POINTS", 512)
    wanted = fast(images, own, driving, cameras)
    try:
        torch.set_num_threads(3)
        found = fast(images, own, driving, cameras)
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

    reference, fast = ReferencePsi(scene.psi), FastPsi(scene.psi)
    source = fast.source(images, own)
    planes = scene.planes(fast.planes(source, driving), case)
    found, wanted = (
        fast.render(planes, source, cameras, deform),
        reference.render(planes, images, cameras, deform),
    )
    assert psnr(found.image, wanted.image) > 60
    assert psnr(found.image, fast.render(planes, source, cameras).image) < 40
    assert {(shape[0], shape[2]) for shape in asked} == {(batch, 3)}


def test_what_is_left_out_stays_within_the_bound(scene: Scene) -> None:
    case = BenchCase("", views=2)
    images, own, driving, cameras = scene.inputs(case)
    everything, some = FastPsi(scene.psi, nothing=0.0, share=0.0), FastPsi(scene.psi)
    source = some.source(images, own)
    planes = scene.planes(some.planes(source, driving), case)
    wanted, found = (network.render(planes, source, cameras) for network in (everything, some))
    exact = ReferencePsi(scene.psi).render(planes, images, cameras)
    torch.testing.assert_close(wanted.feature, exact.feature, atol=1e-4, rtol=1e-4)
    samples = SMOKE_SIZES.samples + SMOKE_SIZES.samples_fine
    # Features lie in [-1, 1], so that they differ by twice the opacity.
    assert (found.feature - wanted.feature).abs().max() <= 2 * (NOTHING + SHARE * samples) + 1e-4
    assert (found.opacity - wanted.opacity).abs().max() <= NOTHING + 1e-4
    opaque = wanted.opacity > 0.5
    torch.testing.assert_close(found.depth[opaque], wanted.depth[opaque], atol=1e-4, rtol=1e-4)
    assert opaque.any() and (wanted.opacity < NOTHING).any()


def test_empty_space(scene: Scene) -> None:
    case = BenchCase("")
    images, own, driving, cameras = scene.inputs(case)
    fast = FastPsi(scene.psi)
    source = fast.source(images, own)
    planes = torch.zeros_like(fast.planes(source, driving))
    found = fast.render(planes, source, cameras)
    assert (
        found.opacity.max() < 1e-3 and torch.isfinite(found.depth).all() and torch.isfinite(found.image).all()
    )
    assert psnr(found.image, ReferencePsi(scene.psi).render(planes, images, cameras).image) > 60


def test_one_source_serves_many_motions(scene: Scene) -> None:
    images, own, driving, _ = scene.inputs(BenchCase("", batch=2))
    fast = FastPsi(scene.fog)
    source = fast.source(images, own)
    for motion in (driving, own, driving):
        assert (
            relative_error(fast.planes(source, motion).numpy(), scene.fog.planes(images, own, motion).numpy())
            < 1e-5
        )


def test_motion_scale(scene: Scene) -> None:
    images, own, driving, _ = scene.inputs(BenchCase("", batch=2))
    fast = FastPsi(scene.fog)
    still = fast.planes(fast.source(images, None, 0.0), None)
    assert relative_error(still.numpy(), scene.fog.planes(images, None, None, 0.0).numpy()) < 1e-5
    each = torch.tensor([0.0, 0.7])[:, None, None]
    mixed = fast.planes(fast.source(images, own, each), driving)
    assert relative_error(mixed.numpy(), scene.fog.planes(images, own, driving, each).numpy()) < 1e-5
    with pytest.raises(ValueError, match="motion embedding is needed"):
        fast.source(images, None)


@pytest.mark.parametrize("onednn", [True, False])
def test_convolution(onednn: bool) -> None:
    x = torch.randn(2, 8, 12, 10)
    for name in layers.ACTIVATIONS:
        for stride, dilation, groups, side in (
            (1, 1, 1, 3),
            (2, 1, 1, 3),
            (1, 3, 1, 3),
            (1, 1, 8, 3),
            (1, 1, 1, 1),
            (2, 1, 1, 7),
        ):
            weight, bias = torch.randn(16, 8 // groups, side, side), torch.randn(16)
            layer = Convolution(weight, bias, name, stride, dilation, groups)
            layer.onednn = onednn and layer.onednn
            plain = F.conv2d(x, weight, bias, stride, dilation * (side // 2), dilation, groups)
            for _ in range(2):
                torch.testing.assert_close(layer(x), activate(plain, name), atol=1e-4, rtol=1e-4)
            if name in ("none", "relu"):
                torch.testing.assert_close(layer(x, plain), activate(2 * plain, name), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(2, 4, 4, 6), (2, 16, 32, 1024)])
def test_attention(size: tuple[int, int, int, int]) -> None:
    batch, height, width, count = size
    query, key, value = (torch.randn(3, batch, n, 8) for n in (height * width, count, count))
    wanted = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    grids = [head.unflatten(1, (height, width)).permute(0, 3, 1, 2) for head in query]
    found = attend(grids, list(key), list(value)).flatten(2).mT.unflatten(2, (3, -1))
    torch.testing.assert_close(found, wanted.permute(1, 2, 0, 3), atol=1e-5, rtol=1e-4)


def test_operations_are_those_of_the_published_network() -> None:
    parts = operations(Sizes())
    units = ("convolution", "product", "attention")
    giga = {part: sum(amounts[unit] for unit in units) / 1e9 for part, amounts in parts.items()}
    assert sum(giga.values()) == pytest.approx(1673, abs=0.5)
    assert giga["rays"] == pytest.approx(13, abs=0.5) and giga["superresolution"] == pytest.approx(
        198, abs=0.5
    )
    seconds = floor(parts, Rates(convolution=431, product=366, attention=193, look_up=0.0115, softplus=1.0))
    assert sum(seconds.values()) == pytest.approx(5.5, abs=0.2)


def test_operations_are_counted(scene: Scene) -> None:
    images, own, driving, cameras = scene.inputs(BenchCase(""))
    fast = FastPsi(scene.fog)
    with counted() as counter:
        fast(images, own, driving, cameras)
    with counted() as other:
        ReferencePsi(scene.fog)(images, own, driving, cameras)
    assert counter.get_total_flops() == pytest.approx(other.get_total_flops(), rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scale"), [("psi_v2", 1.0), ("psi_3d", 0.0)])
def test_official_fixtures(name: str, scale: float) -> None:
    rule, sizes = NumberRule(), Sizes()
    stored = read_fixture(PARITY / f"{name}.npz")
    fast = FastPsi(rule.fill(Psi(sizes), EQUALISED))
    motions = [rule.tensor(key, (1, sizes.motion.dims)) for key in ("motion_app", "motion")]
    source = fast.source(rule.image("img_app", sizes.image), motions[0], scale)
    planes = fast.planes(source, motions[1])
    picture = fast.render(planes, source, camera()[None])
    found = {
        "planes": planes[0, :, :, ::8, ::8],
        "feature": picture.feature[0],
        "transmittance": 1 - picture.opacity[0],
        "depth": picture.depth[0],
        "image": picture.raw[0],
        "image_sr": picture.image[0],
        "image_sr_exact": picture.image[0, :, ::8, ::8],
    }
    errors = {
        key: stored[key].error(value.reshape(stored[key].shape).numpy())
        for key, value in found.items()
        if key in stored
    }
    assert len(errors) >= 6
    bounds = {key: 2e-3 if stored[key].values.dtype == np.float16 else 1e-4 for key in errors}
    assert {key: error for key, error in errors.items() if error > bounds[key]} == {}


@pytest.mark.slow
@pytest.mark.process
def test_the_command(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from pipeline.cli import main; main()",
        "bench",
        "--scale",
        "smoke",
        "--json",
        str(tmp_path / "a.json"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert (result.returncode, result.stderr) == (0, "")
    numbers = json.loads((tmp_path / "a.json").read_text())
    assert [(line["case"], line["dtype"]) for line in numbers["results"]] == [
        (case.name, name) for name in TYPES for case in CASES
    ]
    assert all(case.name in result.stdout for case in CASES)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler"
)
def test_compiled(scene: Scene) -> None:
    inputs = scene.inputs(BenchCase("", batch=2, views=3))
    torch.testing.assert_close(
        FastPsi(scene.psi, compiled=True)(*inputs).image,
        FastPsi(scene.psi)(*inputs).image,
        atol=1e-4,
        rtol=1e-4,
    )


def test_batches_of_different_heads(scene: Scene) -> None:
    """Heads of which one fills the picture and another is empty share their pieces of work."""
    case = BenchCase("", batch=2)
    images, own, driving, cameras = scene.inputs(case)
    fast = FastPsi(scene.psi)
    source = fast.source(images, own)
    planes = scene.planes(fast.planes(source, driving), case)
    planes = torch.cat([planes[:1], torch.zeros_like(planes[1:])])
    found = fast.render(planes, source, cameras)
    alone = fast.render(planes[:1], replace(source, background_BFnn=source.background_BFnn[:1]), cameras[:1])
    torch.testing.assert_close(found.image[:1], alone.image, atol=1e-4, rtol=1e-4)
    assert found.opacity[1].max() < 1e-3
