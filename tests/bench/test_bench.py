"""`psi4d bench`: what it counts, how it times, what it writes, and the tables that are made from that."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model.fast.psi import FastPsi
from model.psi.reference import ReferencePsi
from model.sizes import Sizes
from pipeline.bench.clock import Seconds, Timed, counted, measured
from pipeline.bench.floor import Rates, floor, operations
from pipeline.bench.inference import TYPES
from pipeline.bench.scene import CASES, BenchCase, Scene
from pipeline.bench.training import TrainingCase, bench_training
from pipeline.core.errors import UserError
from pipeline.parity.numbers import NumberRule
from tests.benchmarks.record import record
from tests.benchmarks.tables import table
from tests.support import training_inputs
from tests.support.sizes import SMOKE_SIZES

ROOT = Path(__file__).parents[2]
MACHINE = {"cpu": "A CPU", "threads": 2, "torch": "9.9", "commit": "abc+"}
PUBLISHED_GFLOP = {"source": 495, "planes": 967, "rays": 13, "superresolution": 198}  # NOTES.md


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(SMOKE_SIZES, NumberRule())


def test_operations_are_those_of_the_published_network() -> None:
    parts = operations(Sizes())
    for part, units in parts.items():
        giga = sum(units[unit] for unit in ("convolution", "product", "attention")) / 1e9
        # The numbers of the notes are rounded to whole ones.
        assert giga == pytest.approx(PUBLISHED_GFLOP[part], abs=1.0), part
    # Every part takes longer than the tolerance, so that none can be forgotten.
    rates = Rates(convolution=431, product=366, attention=193, look_up=0.0115, softplus=1.0)
    seconds = floor(parts, rates)
    assert sum(seconds.values()) == pytest.approx(5.5, abs=0.2)


def test_operations_are_counted(scene: Scene) -> None:
    inputs = scene.inputs(BenchCase(""))
    fast = FastPsi(scene.fog)
    taken_by = scene.cameras_of_sources(BenchCase(""))
    with counted() as counter:
        fast(*inputs, camera_source_B25=taken_by)
    with counted() as other:
        ReferencePsi(scene.fog)(*inputs, camera_source_B25=taken_by)
    # The fast path folds some layers together; the operations of oneDNN are most of the work.
    assert counter.get_total_flops() == pytest.approx(other.get_total_flops(), rel=0.15)


def test_the_first_run_counts_and_the_median_of_the_others_is_timed() -> None:
    # The counting run is by far the slowest, and no two orders of the others have the same middle.
    taken = iter([5.0, 3.0, 1.0, 2.0])

    def run(timed: Timed) -> torch.Tensor:
        product = timed.part("product", torch.matmul, torch.ones(10, 20), torch.ones(20, 30))
        timed.parts["product"] = Seconds(next(taken), 0.0)
        return product

    timed, result = measured(run, budget=0.0, least=3)
    assert result.shape == (10, 30)
    assert timed.parts == {"product": Seconds(2.0, 0.0)}
    assert timed.gflop == 2 * 10 * 20 * 30 / 1e9


def fake_run(seconds: float) -> dict[str, Any]:
    """The JSON of a run in which every part takes as long, and the plain path as long as twelve of them."""
    results = []
    for name, dtype_factor in (("fp32", 2.0), ("bf16", 1.0)):
        for case in CASES:
            part = {"wall": seconds * dtype_factor, "work": 0.0}
            results.append(
                {
                    "case": case.name,
                    "dtype": name,
                    "parts": {"planes": part, "rays": part},
                    "reference": {"wall": 12 * seconds, "work": 0.0},
                    "psnr": 70.4 if name == "fp32" else 41.5,
                }
            )
    return {"benchmark": "inference", "machine": MACHINE, "results": results}


def test_the_table_of_the_readme_is_made_from_a_run() -> None:
    rows = table(fake_run(1.25)).splitlines()
    assert rows[0] == "| | plain, fp32 | fast, fp32 | fast, bf16 |"
    assert "| full frame | 15.0 | 5.0 (3.0x) | 2.5 (6.0x) |" in rows
    assert "| PSNR to the plain one in fp32 | | 70 dB | 42 dB |" in rows


def test_other_benchmarks_have_tables() -> None:
    engine = {"bare": [12.1, 11.5], "engine": {"1": {"working": 12.0, "whole": 7.6}}}
    rows = table({"benchmark": "engine", "machine": MACHINE, **engine}).splitlines()
    assert rows[2:4] == ["| bare loop, before and after | 12.10, 11.50 | |", "| 1 workers | 12.00 | 7.60 |"]
    reading = {
        "demo": {"loader": 854.0},
        "paper": {"loader": 41.0},
        "trainer": 14.4,
        "paper_trainer_a_gpu": 3.33,
    }
    rows = table({"benchmark": "reading", "machine": MACHINE, **reading}).splitlines()
    assert "| loader | 854.0 | 41.0 |" in rows
    worth = {
        "training_step": 0.58,
        "reading_a_batch": 0.01,
        "rendering_a_batch": 0.13,
        "a_frame": 0.09,
        "steps": 763.2,
    }
    rows = table({"benchmark": "worth", "machine": MACHINE, **worth}).splitlines()
    assert "| a step that renders its views | 0.7100 |" in rows
    assert rows[-1] == "A CPU, 2 threads, torch 9.9, commit abc+."
    plain = {"network": "psi", "precision": "float32", "processes": 0}
    results = [
        plain | {"images_per_second": 9.96, "share": None},
        plain | {"processes": 2, "images_per_second": 30.0, "share": 0.71},
    ]
    rows = table({"benchmark": "training", "machine": MACHINE, "results": results}).splitlines()
    assert rows[2:4] == ["| psi | float32 | plain loop | 10.0 |  |", "| psi | float32 | 2 | 30.0 | 0.71 |"]


@pytest.mark.process
@pytest.mark.parametrize("case", ["psi3d-float32-0", "psi-float32-1", "psi-bfloat16-2"])
def test_a_training_is_timed_with_the_inputs_of_the_project(tmp_path: Path, case: str) -> None:
    training_inputs.build(tmp_path, processes=0)
    command = [sys.executable, "-m", "pipeline.bench.training", case, "result.json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    found = json.loads((tmp_path / "result.json").read_text())
    assert str(TrainingCase(found["network"], found["precision"], found["processes"])) == case
    assert found["images_per_second"] > 0
    # The plain loop has no floor of its own: it is what the others are compared with.
    assert (found["share"] is None) == (found["processes"] == 0)


def test_a_benchmark_of_trainings_names_the_stage_that_is_missing(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="dvc repro render_genhead"):
        next(bench_training())


@pytest.mark.process
def test_a_record_says_what_its_numbers_belong_to(tmp_path: Path) -> None:
    record(tmp_path / "a.json", "engine", {"bare": [1.0, 2.0]})
    run = json.loads((tmp_path / "a.json").read_text())
    assert run["benchmark"] == "engine" and run["bare"] == [1.0, 2.0]
    facts = run["machine"]
    assert facts["torch"] == torch.__version__ and facts["threads"] >= 1 and facts["cpu"]
    # An archive of the sources has no commit to compare with.
    if (ROOT / ".git").exists():
        command = ["git", "rev-parse", "HEAD"]
        head = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert head.stdout.startswith(facts["commit"].removesuffix("+"))


@pytest.mark.slow
@pytest.mark.process
def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    program = "from pipeline.cli import main; main()"
    # A process of its own: the fast path changes how a process treats memory, and for good.
    command = [sys.executable, "-c", program, "bench", "--scale", "smoke", "--json", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert (result.returncode, result.stderr) == (0, "")
    run = json.loads(file.read_text())
    timed = [(line["case"], line["dtype"]) for line in run["results"]]
    assert timed == [(case.name, name) for name in TYPES for case in CASES]
    assert all(case.name in result.stdout for case in CASES)
    assert run["machine"].keys() >= {"cpu", "torch", "commit", "threads"}
    assert len(table(run).splitlines()) == 8
