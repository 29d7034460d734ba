"""The command line and the frame around every stage, as a user meets them.

Most tests start a process and look at its exit code and at its one message.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.scales import scale_params, scale_text
from pipeline.core import paths
from pipeline.core.files import write_bytes
from pipeline.engine.scratch import scratch_folder
from pipeline.geometry.standin import standin
from tests.support.flame_files import write_flame
from tests.support.texts import replaced

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.process
# A stage of no graph that ends in each of the ways in which a stage can end.
STAGE = """
from pipeline.core.errors import UserError
from pipeline.stage import run_stage, write_metrics

def main(params, item):
    if item == "bad":
        raise UserError("nothing works")
    if item == "full":
        raise OSError(28, "No space left on device", "data/views")
    if item == "stopped":
        raise KeyboardInterrupt
    write_metrics("stage", {"a": 1, "history": [{"images": 1}, {"images": 2, "l1": 0.5}]})

run_stage("stage", main, ("good", "bad", "full", "stopped"))
"""


@pytest.fixture
def folder(tmp_path):
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    (tmp_path / "params.yaml").write_text(scale_text("demo"))
    (tmp_path / "stage.py").write_text(STAGE)
    return tmp_path


def call(folder: Path, *arguments: str, path: str = str(ROOT)) -> subprocess.CompletedProcess:
    # One thread: tests run beside each other. The time limit is for a process that hangs, not for a slow one.
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


def psi4d(folder: Path, *arguments: str, path: str = str(ROOT)) -> subprocess.CompletedProcess:
    return call(folder, "-c", "from psi4d_command import main; main()", *arguments, path=path)


def test_clean_lists_and_removes_what_older_runs_left(folder, monkeypatch, capsys):
    monkeypatch.setenv("DVC_ROOT", str(folder))
    for mark in ("aaaa", "bbbb"):
        write_bytes(scratch_folder("render_views", mark) / "part.tar", bytes(3000))
    capsys.readouterr()
    # Of this stage there is no other folder.
    scratch_folder("train", "cccc")
    assert capsys.readouterr().err == ""
    scratch_folder("render_views", "bbbb")
    older = "1 scratch folder of other inputs or code, 3.0 kB (aaaa 3.0 kB)"
    assert capsys.readouterr().err == f"render_views: {older}; `psi4d clean` removes them\n"
    # A command is called without DVC, in the folder of the project.
    monkeypatch.delenv("DVC_ROOT")
    listed = psi4d(folder, "clean").stdout
    assert "1 folders with 3.0 kB can go: `psi4d clean --yes`" in listed
    assert "render_views/bbbb  kept: of the last run" in listed
    scratch = folder / ".cache/psi4d/scratch/render_views"
    assert {path.name for path in scratch.iterdir()} == {"aaaa", "bbbb"}
    assert "3.0 kB are free now" in psi4d(folder, "clean", "--yes").stdout
    assert {path.name for path in scratch.iterdir()} == {"bbbb"}
    assert "there is nothing to remove" in psi4d(folder, "clean").stdout


def test_scale_writes_params_and_keeps_changed_ones(folder):
    assert psi4d(folder, "scale", "smoke").returncode == 0
    assert (folder / "params.yaml").read_text() == scale_text("smoke")
    assert not (folder / "params.yaml.bak").exists()
    mine = replaced(scale_text("smoke"), "batch: 4", "batch: 6")
    (folder / "params.yaml").write_text(mine)
    assert "params.yaml.bak" in psi4d(folder, "scale", "study").stdout
    assert (folder / "params.yaml.bak").read_text() == mine


def test_other_packages_with_our_names_do_not_matter(folder):
    # `pipeline` is a common name, and PYTHONPATH comes before what is installed.
    (folder / "elsewhere/pipeline").mkdir(parents=True)
    (folder / "elsewhere/pipeline/__init__.py").write_text("raise RuntimeError")
    result = psi4d(folder, "scale", "smoke", path=f"elsewhere{os.pathsep}{ROOT}")
    assert (result.returncode, result.stderr) == (0, "")


def test_unknown_scale_is_one_line(folder):
    result = psi4d(folder, "scale", "huge")
    assert result.returncode == 1
    assert (
        result.stderr.strip() == "psi4d: there is no scale 'huge'; choose one of smoke, demo, study, paper."
    )
    assert (folder / "params.yaml").read_text() == scale_text("demo")


def test_outside_of_the_project(tmp_path):
    result = psi4d(tmp_path, "doctor")
    assert result.returncode == 1
    assert "no dvc.yaml here" in result.stderr
    assert "Traceback" not in result.stderr


def test_doctor_finds_nothing_missing_at_the_demo_scale(folder):
    result = psi4d(folder, "doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "missing" not in result.stdout
    ingest = scale_params("demo").ingest
    assert (
        f"{(ingest.train_clips + ingest.validation_clips + ingest.test_clips) * ingest.frames:,} frames"
        in result.stdout
    )


def test_doctor_names_what_the_paper_scale_needs(folder):
    # All that only its owners give away, and the disk: a person should learn it in one go.
    (folder / "params.yaml").write_text(scale_text("paper"))
    result = psi4d(folder, "doctor")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    for name in ("generic_model.pkl", "motion_model.pth", "backbone.pth", "portraits", "clips", "TB"):
        assert name in result.stdout


def test_import_says_what_it_made_or_what_is_wrong(folder):
    write_flame(standin(), folder)
    result = psi4d(folder, "import", "generic_model.pkl", "--out", "mine")
    assert result.returncode == 0, result.stderr
    assert "set flame.model to mine/flame.safetensors" in result.stdout
    result = psi4d(folder, "import", "params.yaml")
    assert result.returncode == 1
    assert result.stderr.startswith("psi4d: nothing was imported. params.yaml: it is a text")
    assert "Traceback" not in result.stderr


def test_doctor_counts_a_users_files(folder):
    (folder / "params.yaml").write_text(
        replaced(scale_text("smoke"), "source: generated  # generated: heads", "source: folder  # heads")
    )
    for name in ("portraits/sub/a.JPG", "portraits/notes.txt", "clips/b.mp4"):
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    output = psi4d(folder, "doctor").stdout
    assert "1 files in data/portraits" in output
    assert "1 files in data/clips" in output


@pytest.mark.parametrize("content", [None, b"cut off"])
def test_damaged_weights_end_in_one_message(folder, content):
    """A real stage: train, with the weights of Psi_3d missing or damaged."""
    for path in (paths.VIEWS, paths.PERCEPTION, paths.PSI3D):
        (folder / path).mkdir(parents=True)
    if content:
        weights = folder / paths.PSI3D / "psi3d.safetensors"
        weights.write_bytes(content)
        weights.with_suffix(".json").write_text('{"sha256": "0"}')
    result = call(folder, "-m", "stages.train")
    assert result.returncode == 1
    assert result.stderr.startswith("train: the weights data/psi3d/psi3d.safetensors are")
    assert "dvc repro" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_stage_started_by_hand_says_that_its_code_was_marked_long_ago(folder):
    # `dvc repro` renews the marks; a stage that is started by hand meets those of the last run.
    assert call(folder, "-m", "stages.code").returncode == 0
    mark = folder / "data/code/train.txt"
    mark.write_text(re.sub(r"\w+(  pipeline.train.loop)", r"0\1", mark.read_text()))
    said = call(folder, "-m", "stages.train").stderr.splitlines()[0]
    assert (
        said == "train: the mark of its code is old (pipeline.train.loop changed); `dvc repro code` renews it"
    )


def test_a_stage_leaves_metrics_curves_and_costs(folder):
    result = call(folder, "stage.py", "good")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads((folder / "metrics/stage.json").read_text()) == {"a": 1}
    assert json.loads((folder / "metrics/plots/stage.json").read_text()) == [
        {"images": 1, "l1": None},
        {"images": 2, "l1": 0.5},
    ]
    costs = json.loads((folder / ".cache/psi4d/costs/stage_good.json").read_text())
    assert costs["seconds"] >= 0
    assert costs["peak_mb"] > 10


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("bad", "stage bad: nothing works"),
        ("full", "No space left on device: data/views"),
        ("stopped", "run again to go on"),
        ("other", "usage: python -m stages.stage good|bad|full|stopped"),
    ],
)
def test_a_failing_stage_says_one_thing(folder, item, words):
    result = call(folder, "stage.py", item)
    assert result.returncode == 1
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (folder / "metrics").exists()


def test_a_stage_refuses_wrong_params_before_any_work(folder):
    (folder / "params.yaml").write_text(
        replaced(scale_text("demo"), "substitute_q: 0.8", "substitute_q: 1.5")
    )
    result = call(folder, "stage.py", "good")
    assert result.returncode == 1
    assert "train.substitute_q is 1.5" in result.stderr
    assert not (folder / "metrics").exists()
