"""machine.device: every training stage and evaluate run on it from end to end.

The device is pretended (tests/support/pretend_device.py).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from model.weights import load_weights
from pipeline.config.params import Params
from pipeline.core.device import choose_device, to_device
from pipeline.core.errors import UserError
from pipeline.evaluate.protocol import evaluate
from pipeline.evaluate.report import write_report
from pipeline.pretrain.genhead import pretrain_genhead
from pipeline.pretrain.motion import pretrain_motion
from pipeline.pretrain.perception import pretrain_perception
from pipeline.render.genhead import render_genhead
from pipeline.render.views import render_views
from pipeline.train.psi import train_psi
from pipeline.train.psi3d import train_psi3d
from pipeline.train.synthetic_batches import HeadBatch
from tests.support import small_run
from tests.support.pretend_device import NAME, PretendDevice
from tests.support.short_training import Stop, run, same


def few_steps(device: str) -> Params:
    """The smallest run in which every loss is met, a checkpoint written and a preview drawn."""
    own = small_run.params()
    schedule = {
        "images": 8,
        "batch": 4,
        "microbatch": 2,
        "warmup": 4,
        "ema_half_life": 4,
        "adversarial_from": 0,
        "whole_from": 0,
    }
    schedule |= {"checkpoint_every": 4, "preview_every": 4}
    pretrain = own.pretrain
    few = {
        name: getattr(pretrain, name).model_copy(update={"steps": 2, "batch": 4, "microbatch": 2})
        for name in ("perception", "motion", "genhead")
    }
    return own.model_copy(
        update={
            "machine": own.machine.model_copy(update={"device": device, "workers": 0}),
            "pretrain": pretrain.model_copy(update=few),
            "render_genhead": own.render_genhead.model_copy(update={"heads": 4}),
            "train_psi3d": own.train_psi3d.model_copy(
                update=schedule | {"identity_from": 0, "depth_until": 8, "planes_until": 8}
            ),
            "render_views": own.render_views.model_copy(update={"views": 1}),
            "train": own.train.model_copy(update=schedule),
        }
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device")
    small_run.build(folder, few_steps("cpu"))
    # The truth of real portraits.
    (folder / "nothing").mkdir()
    return folder


@pytest.fixture(autouse=True)
def export_outside_of_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ONNX exporter traces a copy on the CPU, and tracing does not work within any dispatch mode."""
    export = torch.onnx.export

    def outside(*arguments: Any, **named: Any) -> None:
        with _disable_current_modes():
            export(*arguments, **named)

    monkeypatch.setattr(torch.onnx, "export", outside)


def pretrain(own: Params, world: Path, out: Path) -> None:
    inputs = (world / "ingest", world / "labels", world / "nothing")
    pretrain_perception(own, *inputs, out / "perception")
    pretrain_motion(own, *inputs, out / "motion")
    pretrain_genhead(own, *inputs, out / "genhead")


@pytest.mark.slow
def test_every_training_stage_and_evaluate_run_on_the_device(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    own, data = few_steps(NAME), tmp_path
    counts = []
    with PretendDevice() as device:

        def after(result: object) -> object:
            counts.append(device.operations)
            return result

        real = (world / "ingest", world / "labels/vfhq.parquet")
        after(pretrain(own, world, data))
        render_genhead(few_steps("cpu"), world / "labels", data / "genhead", data / "heads")
        static = after(
            train_psi3d(own, data / "heads", data / "perception", data / "genhead", *real, data / "psi3d")
        )
        inputs = (*real, *(data / name for name in ("motion", "perception", "psi3d")))
        # On the CPU: the pretended device does not know the inference mode of rendering.
        render_views(few_steps("cpu"), *inputs, data / "views", data / "worst.jpg")
        moving = after(train_psi(own, data / "views", data / "perception", data / "psi3d", data / "psi"))
        folders = {name: data / name for name in ("psi3d", "views", "psi", "perception")}
        result = after(evaluate(own, world / "ingest", world / "labels", truth=world / "truth", **folders))
        write_report(
            result,
            ingest=world / "ingest",
            views=1,
            videos=1,
            sheet=data / "sheet.jpg",
            out=data / "evaluate",
        )
    # Work on the CPU that should have been on the device would not be counted.
    assert (np.diff([0, *counts]) > 100).all()
    # All losses occur, though not in each row: some are of sparse steps.
    losses = {"identity", "depth", "planes", "adversarial", "discriminator"}
    assert losses <= set().union(*static["history"])
    for row in static["history"] + moving["history"]:
        assert np.isfinite(list(row.values())).all()
    assert {"psi", "psi3d", "copy"} <= result.scores["novel_views"].keys()
    assert (data / "evaluate" / "report.html").exists()


@pytest.mark.slow
def test_where_the_pretended_device_computes_like_the_cpu_the_networks_are_the_same(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the random numbers depends on the device."""
    for name in ("cpu", NAME):
        monkeypatch.setenv("DVC_ROOT", str(tmp_path / name))
        with PretendDevice():
            pretrain(few_steps(name), world, tmp_path / name)
    files = ["perception/identity.onnx", "motion/motion.safetensors"]
    files += [f"perception/{name}.safetensors" for name in ("identity", "trunk", "regressor")]
    for file in files:
        assert (tmp_path / "cpu" / file).read_bytes() == (tmp_path / NAME / file).read_bytes(), file
    # Only nearly the same: on the CPU itself GenHead takes kernels that round differently.
    one, other = (load_weights(tmp_path / name / "genhead/genhead.safetensors")[0] for name in ("cpu", NAME))
    assert all(torch.allclose(one[key], other[key], atol=1e-3) for key in one)


def test_a_checkpoint_goes_back_to_the_device(tmp_path: Path) -> None:
    # Tensors of a checkpoint come from a file and so from the CPU; an optimiser that keeps them there fails.
    with PretendDevice():
        whole = run(tmp_path / "whole", device=NAME)
        with pytest.raises(Stop):
            run(tmp_path / "cut", stop_at=57, device=NAME)
        resumed = run(tmp_path / "cut", device=NAME)
        assert {value.device.type for value in resumed[0].values()} == {NAME}
        assert same(whole[0], resumed[0]) and same(whole[1], resumed[1]) and whole[2] == resumed[2]
    assert run(tmp_path / "cpu")[2] == whole[2]


def test_the_pretended_device_refuses_what_cuda_refuses() -> None:
    # A pretended device that is too kind would let through what fails on a real one.
    with PretendDevice():
        there = torch.ones(3, device=NAME)
        assert (there[torch.tensor([0, 1])] * torch.tensor(2.0)).cpu().tolist() == [2.0, 2.0]
        for mixed in (
            lambda: there + torch.ones(3),
            lambda: torch.ones(3)[there.long()],
            lambda: torch.cat([there, torch.ones(1)]),
        ):
            with pytest.raises(RuntimeError, match="mixes tensors"):
                mixed()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, generator=torch.Generator(), device=NAME)
        with pytest.raises((TypeError, RuntimeError), match="numpy"):
            there.numpy()


def test_what_is_moved_and_what_is_not() -> None:
    # Batches are dataclasses within tuples and dicts; what is no tensor has to come through as it is.
    batch = HeadBatch(*(torch.zeros(1) for _ in HeadBatch.__dataclass_fields__))
    moved, index, (first, names) = to_device((batch, np.arange(2), ({"a": torch.ones(1)}, "names")), "meta")
    assert isinstance(moved, HeadBatch) and moved.camera.device.type == first["a"].device.type == "meta"
    assert isinstance(index, np.ndarray) and names == "names"
    assert to_device(batch.camera, "cpu") is batch.camera


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there() -> None:
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match=r"machine\.device is cuda"):
        choose_device("cuda")
