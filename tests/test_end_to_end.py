"""The whole graph at the smoke scale, from a fresh clone.

It runs, says what it did and what was learnt, and a second time there is nothing left to do.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from model.psi.network import Psi
from model.weights import load_weights
from pipeline.clips.held_out import IngestedClips
from pipeline.config.params import load_params
from tests.model.test_layout import corner_of
from tests.support.small_cluster import small_cluster

ROOT = Path(__file__).parents[1]
METRICS = [
    "ingest",
    "fit_flame_ffhq",
    "fit_flame_vfhq",
    "pretrain_perception",
    "pretrain_motion",
    "pretrain_genhead",
    "render_genhead",
    "train_psi3d",
    "render_views",
    "train",
    "evaluate",
]
# Numbers of held-out people that a stage must bring down, and to which share of what they were at its start.
BETTER = [
    ("pretrain_motion", "loss", 0.8),
    ("pretrain_genhead", "l1", 0.7),
    ("train_psi3d", "l1", 0.8),
    ("train_psi3d", "lpips", 0.9),
    ("train", "lpips", 0.96),
]
# Too small a part of a short run: the styles, of which super-resolution has but one, the discriminator, which
# comes in the last steps, and the one head of E_mot that nothing reads.
STILL = (
    "psi.superresolution.block0.conv0.affine",
    "psi.superresolution.block0.conv1.affine",
    "psi.superresolution.block0.torgb.affine",
)
STILL += ("discriminator.", "teacher.encoder.mouth_embed")
# Short, but with every loss and with whole steps, as a second run has to make the same bytes of it.
ABLATION = ("substitute_q=0.0", "images=320", "whole_from=160", "adversarial_from=240")
pytestmark = [pytest.mark.slow, pytest.mark.process]


def call(folder: Path, *command: str) -> str:
    """Output of a command that must succeed, run with this interpreter's environment."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout + result.stderr


def ran(output: str) -> list[str]:
    """The stages that DVC ran."""
    return re.findall(r"Running stage '([\w@]+)'", output)


def commit(folder: Path) -> None:
    call(folder, "git", "add", "-A")
    call(
        folder, "git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-q", "-m", "test"
    )


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A fresh repository with the files of this one, in which the graph has run once."""
    # What is not committed yet counts, too: the tests are of the working tree. Results of earlier runs do
    # not.
    folder = tmp_path_factory.mktemp("clone")
    for name in call(ROOT, "git", "ls-files", "-co", "--exclude-standard").splitlines():
        if not name.startswith("metrics/") and name != "dvc.lock" and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    call(folder, "git", "init", "-q")
    call(folder, "python", "-c", "from pipeline.cli import main; main()", "scale", "smoke")
    commit(folder)
    call(folder, "dvc", "repro")
    commit(folder)
    return folder


def test_every_stage_reports(clone):
    for name in METRICS:
        assert json.loads((clone / f"metrics/{name}.json").read_text()), name
    assert (clone / "metrics/contact_sheet.jpg").stat().st_size > 1000
    assert (clone / "data/evaluate/report.html").exists()
    costs = {path.stem for path in (clone / ".cache/psi4d/costs").glob("*.json")}
    assert costs == set(METRICS)


def held_out(clone: Path, stage: str, name: str) -> tuple[float, float]:
    """A number of people who are not trained on, before the first step of a stage and after its last."""
    rows = json.loads((clone / f"metrics/plots/{stage}.json").read_text())
    values = [row[f"validation_{name}"] for row in rows if row.get(f"validation_{name}") is not None]
    assert len(values) >= 2, (stage, name)
    return values[0], values[-1]


@pytest.mark.parametrize(("stage", "name", "factor"), BETTER)
def test_every_training_is_better_at_its_end_than_at_its_start(clone, stage, name, factor):
    before, after = held_out(clone, stage, name)
    print(stage, name, before, after)
    assert after < factor * before


@pytest.mark.parametrize(
    "network", ("pretrain/perception", "pretrain/motion", "pretrain/genhead", "psi3d", "psi")
)
def test_every_layer_learns(clone, network):
    # A layer that a loss does not reach, or at too small a rate, keeps its random start and spoils the rest.
    moved = json.loads((clone / f"data/{network}/moved.json").read_text())
    still = {name: share for name, share in moved.items() if share < 0.01 and not name.startswith(STILL)}
    assert moved and not still


@pytest.mark.parametrize("stage", ("train_psi3d", "train"))
def test_superresolution_beats_the_enlarged_raw_picture(clone, stage):
    # So few steps gain little; an enlargement that is passed on as it is gains nothing.
    assert held_out(clone, stage, "l1")[1] < 0.995 * held_out(clone, stage, "l1_enlarged")[1]


def test_superresolution_of_genhead_has_better_edges_than_its_enlarged_raw_picture(clone):
    assert (
        held_out(clone, "pretrain_genhead", "edges")[1]
        < 0.98 * held_out(clone, "pretrain_genhead", "edges_enlarged")[1]
    )


def test_an_edit_of_the_source_changes_the_head_mostly_where_it_was_made(clone):
    """Corners of portraits of people who were not trained on; a quarter would be chance."""
    sizes = load_params(clone / "params.yaml").networks
    psi3d = Psi(sizes).eval().requires_grad_(False)
    psi3d.load_state_dict(load_weights(clone / "data/psi3d/psi3d.safetensors")[0])
    clips = IngestedClips(clone / "data/ingest", clone / "data/labels/vfhq.parquet", "validation")
    shares = []
    for keys in clips.clips.values():
        frame = clips.frame(keys[0])
        camera = frame.camera[None]
        show = partial(psi3d, cameras_BV25=camera[:, None], motion_scale=0.0, camera_source_B25=camera)
        whole = show(frame.image[None], None, None).foreground
        for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
            edited = frame.image.clone()
            corner_of(edited, down, right).neg_()
            head = show(edited[None], None, None).foreground
            change = (head - whole).square().sum(1)[0]
            shares.append(float(corner_of(change, down, right).sum() / change.sum()))
    assert np.mean(shares) > 0.32


def test_the_driving_motion_changes_the_picture(clone):
    """With the published start and Adam's published epsilon the change is 4e-6, after as many steps."""
    assert json.loads((clone / "metrics/evaluate.json").read_text())["self"]["psi"]["response"] > 5e-4


def test_a_second_time_there_is_nothing_to_do(clone):
    """Apart from looking at the code, which takes a second."""
    lock = (clone / "dvc.lock").read_bytes()
    assert ran(call(clone, "dvc", "repro")) == ["code", "inputs"]
    assert (clone / "dvc.lock").read_bytes() == lock
    assert call(clone, "git", "status", "--porcelain") == ""


def test_the_curves_draw_without_the_network(clone):
    call(clone, "dvc", "plots", "show")
    page = (clone / "dvc_plots/index.html").read_text()
    assert page.count('var spec = {"data"') == 5
    assert not re.findall(r"https?://|src\s*=\s*.//", page)


def test_the_report_needs_no_network(clone):
    assert not re.findall(
        r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", (clone / "data/evaluate/report.html").read_text()
    )


def test_an_ablation_runs_only_what_it_touches(clone):
    """A short one, as the next test repeats it."""
    changes = [argument for change in ABLATION for argument in ("-S", f"train.{change}")]
    assert ran(call(clone, "dvc", "exp", "run", *changes)) == ["code", "inputs", "train", "evaluate"]
    assert "metrics/train.json" in call(clone, "dvc", "metrics", "diff")
    assert load_params(clone / "params.yaml").train.substitute_q == 0.0


def test_the_machine_changes_nothing_and_a_second_run_makes_the_same_bytes(clone):
    """The second run has two workers, in a cluster that serves all stages, and other processes."""
    # One cluster for all stages: a Ray of its own for each would take longer to start than its work takes.
    lock = (clone / "dvc.lock").read_bytes()
    with small_cluster(nodes=1, cpus=3) as address:
        yaml = YAML()
        params = yaml.load(clone / "params.yaml")
        params["machine"] |= {"workers": 2, "ray_address": address}
        yaml.dump(params, clone / "params.yaml")
        assert ran(call(clone, "dvc", "repro")) == ["code", "inputs"]
        # Or finished units would be taken from the first run.
        call(clone, "python", "-c", "from pipeline.cli import main; main()", "clean", "--units", "--yes")
        assert ran(call(clone, "dvc", "repro", "-f"))[-1] == "evaluate"
    assert (clone / "dvc.lock").read_bytes() == lock
