"""Where Ray may work: long or read-only folders for temporary files, little memory."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.core.errors import UserError
from pipeline.core.limits import free_memory
from pipeline.engine import ray_workers
from pipeline.engine.ray_workers import WORKER_BYTES, _affordable, _ray_folder

ROOT = Path(__file__).parents[2]
TWICE = """
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from pipeline.engine.run import run_units
from tests.support import killing

machine = SimpleNamespace(workers=1, device="cpu", ray_address="", object_store_mb=100)
for name in ("first", "second"):
    Path(name).mkdir()
    worker = partial(killing.Slow, Path(name).resolve() / "log")
    print(len(run_units(killing.UNITS[:1], worker, name, machine, name)))
"""


def machine(**changes):
    return SimpleNamespace(**{"workers": 2, "ray_address": "", "object_store_mb": 100} | changes)


def test_a_long_place_for_temporary_files_is_not_rays(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = _ray_folder()
    # Ray's longest socket lies below it, and has to stay below 108 letters.
    assert len(f"{folder}/session_2026-11-26_16-36-04_424354_4194304/sockets/plasma_store") < 108
    monkeypatch.setattr(ray_workers, "LONGEST_PLACE", 3)
    with pytest.raises(UserError, match="at most 3 letters; none of"):
        _ray_folder()


def test_there_are_no_more_workers_than_memory_for_them(capfd):
    many = free_memory() // WORKER_BYTES + 9
    found = _affordable(many, machine())
    assert 1 <= found < many
    assert f"memory for {found} of {many} workers" in capfd.readouterr().err
    # There is always one, and a cluster has memory of its own.
    assert _affordable(2, machine(object_store_mb=1 << 30)) == 1
    assert _affordable(many, machine(ray_address="host:1")) == many


@pytest.mark.process
def test_ray_starts_twice_without_a_home(tmp_path):
    """Its token is made once in a process, and lies in the home of the user."""
    home = tmp_path / "none"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(home)}
    command = [sys.executable, "-c", TWICE]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout) == (0, "1\n1\n"), run.stderr
    assert not home.exists()
