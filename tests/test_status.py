"""`psi4d status` and `psi4d retry`: what runs left, and doing again what they gave up."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.engine.scratch import last_folder, note_error, publish, scratch_folder
from pipeline.status import DONE, FAILED, RUNNING, STOPPED, statuses
from tests.support import killing

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.process
ENGINE = """
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from pipeline.engine.run import run_units
from pipeline.engine.scratch import scratch_folder
from tests.support import killing

machine = SimpleNamespace(workers=0, device="cpu", ray_address="", object_store_mb=100)
worker = partial(killing.Slow, Path("log"))
scratch = scratch_folder("render_views", "aaaa")
run_units(killing.UNITS, worker, scratch, machine, "render_views", {"frames": 1})
"""


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    return tmp_path


def python(*arguments: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def psi4d(*arguments: str) -> str:
    process = python("-c", "from psi4d_command import main; main()", *arguments)
    said, _ = process.communicate(timeout=300)
    return said


def wait_for(pattern: str, count: int, run: subprocess.Popen) -> None:
    # For files and not for a time, as a machine may be slow; a run that has ended would never write them.
    while len(list(Path(".cache").rglob(pattern))) < count:
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.01)


def kill(run: subprocess.Popen) -> None:
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()


def test_of_a_run_that_is_killed_and_goes_on(tmp_path):
    assert psi4d("status") == "psi4d: no stage has worked here yet; `dvc repro` runs them.\n"
    run = python("-c", ENGINE)
    wait_for("*.done.json", 2, run)
    [found] = statuses()
    assert found.state == RUNNING
    assert re.fullmatch(r"[0-9.]+ frames/s, about [0-9]+ seconds left|.* s left", found.speed)
    kill(run)
    # Nothing moves any more: what is said is what lies in the folder.
    done = len(list(Path(".cache").rglob("*.done.json")))
    [found] = statuses()
    assert found.state == STOPPED
    assert found.progress == f"{done} of 9 shards, {4 * done} of 36 frames"
    assert found.speed.startswith(f"{36 - 4 * done} frames left at ")
    assert f"process {run.pid}" in found.speed and not found.error
    said = psi4d("status", "render_views")
    assert said.startswith(f"render_views         stopped  {done} of 9 shards")
    assert "train has not worked here. These have: render_views." in psi4d("status", "train")
    # A reason that the frame around the stage kept.
    note_error("render_views", "No space left on device")
    [failed] = statuses()
    assert (failed.state, failed.lines()[1].strip()) == (FAILED, "last error: No space left on device")
    note_error("render_views", "")
    rest = python("-c", ENGINE)
    assert "9 shards" in rest.communicate(timeout=300)[0]
    [found] = statuses()
    assert (found.state, found.progress, found.speed) == (DONE, "9 of 9 shards, 36 of 36 frames", "")
    # The records of what is published stay.
    publish(last_folder("render_views"), tmp_path / "out")
    assert statuses() == [found]
    assert len(list((tmp_path / "out").glob("*.tar"))) == len(killing.UNITS)


def test_of_a_unit_that_failed_and_an_item_that_was_given_up():
    folder = scratch_folder("render_views", "aaaa")
    code = ENGINE.replace('killing.Slow, Path("log")', 'Broken, Path("log")')
    broken = """
from tests.support import killing
class Broken(killing.Slow):
    def samples(self, unit, rows):
        if unit.name == "part-000001" or 9 in unit.items:
            raise RuntimeError("no such frame")
        return super().samples(unit, rows)
"""
    said = python("-c", broken + code).communicate(timeout=300)[0]
    assert "part-000001 failed" in said
    [found] = statuses()
    assert found.state == STOPPED
    assert found.progress == "8 of 9 shards, 32 of 36 frames"
    assert found.given_up == "1 given up"
    assert found.error == f"RuntimeError: no such frame ({folder / 'part-000001.error.txt'})"


def test_of_a_training():
    folder = scratch_folder("train", "bbbb")
    run = python("-m", "tests.support.short_training", str(folder), "1", "0.02")
    wait_for("checkpoint-*20.safetensors", 1, run)
    [found] = statuses("train")
    assert found.state == RUNNING and found.speed.endswith(" left")
    assert re.match(r"step [246]0 of 80, [0-9]+ of 640 images", found.progress)
    kill(run)
    [found] = statuses("train")
    assert found.state == STOPPED and " images left at " in found.speed
