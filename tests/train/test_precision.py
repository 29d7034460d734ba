"""bfloat16 in training: near float32, and nothing that is kept is short."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config.params import load_params
from pipeline.train.precision import allow_tf32
from pipeline.train.psi import train_psi
from pipeline.train.psi3d import train_psi3d
from tests.support import training_inputs

STEPS = 12
# By the number of steps how far apart the means of a loss over them may be, over their size. The first step
# has the same weights; later ones have gone different ways, as runs that begin at random do.
TOLERANCES = {1: 0.005, STEPS: 0.05}
TERMS = {"l1", "lpips", "opacity", "identity", "adversarial", "discriminator"}
STAGES = ("train_psi3d", "train")
WEIGHTS = {"train_psi3d": "psi3d/psi3d.safetensors", "train": "psi/psi.safetensors"}


def run(
    stage: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Metrics and weights of STEPS steps in which every loss is met."""
    monkeypatch.setenv("DVC_ROOT", str(folder))
    training_inputs.build(folder, processes=1, images=8 * STEPS, precision=precision)
    params, data = load_params(folder / "params.yaml"), folder / "data"
    perception = data / "pretrain/perception"
    if stage == "train":
        metrics = train_psi(params, data / "views", perception, data / "psi3d", data / "psi")
    else:
        clips = (data / "ingest", data / "labels/vfhq.parquet")
        inputs = (data / "genhead/shards", perception, data / "pretrain/genhead", *clips)
        metrics = train_psi3d(params, *inputs, data / "psi3d")
    return metrics, load_file(data / WEIGHTS[stage])


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_losses_in_bfloat16_are_near_those_in_float32(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, weights = run(stage, tmp_path / "float32", monkeypatch, "float32")
    half, moved = run(stage, tmp_path / "bfloat16", monkeypatch, "bfloat16")
    assert weights.keys() == moved.keys()
    assert all(value.dtype == torch.float32 for value in moved.values())
    assert all(value.isfinite().all() for value in moved.values())
    # It did compute in other numbers.
    assert any(not torch.equal(value, moved[name]) for name, value in weights.items())
    assert means(exact, STEPS).keys() >= TERMS
    for steps, tolerance in TOLERANCES.items():
        one, other = means(exact, steps), means(half, steps)
        assert one.keys() == other.keys()
        apart = {name: abs(value - other[name]) / value for name, value in one.items()}
        print(steps, {name: round(share, 4) for name, share in apart.items()})
        assert max(apart.values()) < tolerance


def means(metrics: dict[str, Any], steps: int) -> dict[str, float]:
    """The mean of each term over those of the first `steps` that have it."""
    values: dict[str, list[float]] = {}
    for row in metrics["history"]:
        for name, value in row.items():
            if row["step"] <= steps and not name.startswith(("validation", "step", "images")):
                values.setdefault(name, []).append(value)
    return {name: sum(each) / len(each) for name, each in values.items()}


def test_tf32_is_allowed_and_forbidden() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for allowed in (True, False):
            allow_tf32(allowed)
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
            assert torch.backends.cudnn.allow_tf32 is allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
