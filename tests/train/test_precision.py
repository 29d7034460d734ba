"""bfloat16 in training: near float32, and nothing that is kept is short."""

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.train.precision import allow_tf32
from tests.support import training_inputs

STEPS = 12
# By the number of steps how far apart the means of a loss over them may be, over their size. The first step
# has the same weights; later ones have gone different ways, as runs that begin at random do.
TOLERANCES = {1: 0.005, STEPS: 0.05}
TERMS = {"l1", "lpips", "opacity", "identity", "adversarial", "discriminator"}
# What rows of a history begin with, besides terms.
NO_TERMS = ("validation", "step", "images")
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
    training_inputs.build(
        folder,
        processes=1,
        images=8 * STEPS,
        precision=precision,
    )
    metrics = training_inputs.train_stage(stage, folder)
    weights = load_file(folder / "data" / WEIGHTS[stage])
    return metrics, weights


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_losses_in_bfloat16_are_near_those_in_float32(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, weights = run(stage, tmp_path / "float32", monkeypatch, "float32")
    half, moved = run(stage, tmp_path / "bfloat16", monkeypatch, "bfloat16")
    assert weights.keys() == moved.keys()
    for value in moved.values():
        assert value.dtype == torch.float32
        assert value.isfinite().all()
    # It did compute in other numbers.
    unchanged = [torch.equal(value, moved[name]) for name, value in weights.items()]
    assert not all(unchanged)
    assert means(exact, STEPS).keys() >= TERMS
    for steps, tolerance in TOLERANCES.items():
        one = means(exact, steps)
        other = means(half, steps)
        assert one.keys() == other.keys()
        for name, value in one.items():
            difference = abs(value - other[name])
            share = difference / value
            print(f"{steps} steps, {name}: {share:.4f}")
            assert share < tolerance, name


def means(metrics: dict[str, Any], steps: int) -> dict[str, float]:
    """The mean of each term over those of the first `steps` that have it."""
    values: dict[str, list[float]] = {}
    for row in metrics["history"]:
        for name, value in row.items():
            if row["step"] <= steps and not name.startswith(NO_TERMS):
                values.setdefault(name, []).append(value)
    # A term is a loss from a certain image on, and is not in each row.
    return {name: fmean(each) for name, each in values.items()}


def test_tf32_is_allowed_and_forbidden() -> None:
    kernels = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [each.allow_tf32 for each in kernels]
    try:
        for allowed in (True, False):
            allow_tf32(allowed)
            for each in kernels:
                assert each.allow_tf32 is allowed
    finally:
        # The switches are of the whole process: other tests need them as they were.
        for each, value in zip(kernels, before, strict=True):
            each.allow_tf32 = value
