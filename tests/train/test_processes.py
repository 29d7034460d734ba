"""Training in several processes: the bits of one, whatever happens to them."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from pipeline.core.errors import UserError
from pipeline.train.distributed import Group, join, processes
from tests.support import training_inputs
from tests.support.folders import checksums

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]
# A step of the short training lasts so long that a signal meets it in the middle.
PAUSE = 0.03
# Moments at which something is killed, drawn by their number: `ROUNDS=5 make test` tries more of them.
ROUNDS = range(int(os.environ.get("ROUNDS", "1")))


def start(
    folder: Path, count: int, pause: float = 0.0, environment: Mapping[str, str] | None = None
) -> subprocess.Popen:
    """The short training in `count` processes, with these variables besides those of this process."""
    arguments = [str(folder), str(count), str(pause)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.short_training", *arguments],
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(folder: Path, count: int) -> str:
    """The hashes of weights and history after a run to the end."""
    run = start(folder, count)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    return result(tmp_path_factory.mktemp("one"), 1)


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_give_the_bits_of_one(tmp_path: Path, undisturbed: str, count: int) -> None:
    assert result(tmp_path, count) == undisturbed


@pytest.mark.slow
def test_processes_of_several_machines_give_the_bits_of_one(tmp_path: Path, undisturbed: str) -> None:
    # Without a count of those on this machine they cannot know that they could share memory.
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    runs = []
    for rank in range(2):
        runs.append(start(tmp_path, 2, environment=place | {"RANK": str(rank)}))
    said = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert said[0][0] == undisturbed


def wait_for_a_checkpoint(folder: Path, run: subprocess.Popen) -> None:
    while run.poll() is None and not list(folder.glob("*.safetensors")):
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("seed", ROUNDS)
@pytest.mark.parametrize("victim", ["a process", "the launcher", "all"])
def test_a_killed_run_of_four_goes_on_in_another_number(
    tmp_path: Path, undisturbed: str, victim: str, seed: int
) -> None:
    draw = random.Random(f"{victim} {seed}")
    run = start(tmp_path, 4, PAUSE)
    wait_for_a_checkpoint(tmp_path, run)
    time.sleep(draw.uniform(0, 1.5))
    launcher = psutil.Process(run.pid)
    workers = launcher.children(recursive=True)
    assert len(workers) == 4
    victims = {"a process": [draw.choice(workers)], "the launcher": [launcher], "all": [launcher, *workers]}
    for process in victims[victim]:
        process.kill()
    _, said = run.communicate(timeout=300)
    assert run.returncode != 0
    if victim == "a process":
        assert "Run again to go on from the last checkpoint" in said
    psutil.wait_procs(workers, timeout=60)
    assert result(tmp_path, draw.choice([1, 2, 4])) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("seed", ROUNDS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_four_with_a_checkpoint(
    tmp_path: Path, undisturbed: str, number: int, seed: int
) -> None:
    draw = random.Random(f"{number} {seed}")
    run = start(tmp_path, 4, PAUSE)
    wait_for_a_checkpoint(tmp_path, run)
    time.sleep(draw.uniform(0, 1.5))
    os.kill(run.pid, number)
    _, said = run.communicate(timeout=300)
    assert run.returncode == 75
    assert said.count("Run again to go on from the last checkpoint") == 1
    # The one of the signal is there besides those of every 20 steps.
    newest = json.loads(max(tmp_path.glob("checkpoint-*.json")).read_text())
    assert f"stopped after step {newest['done']} of 80" in said
    assert result(tmp_path, draw.choice([1, 2])) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train_psi3d", "train"])
def test_a_stage_makes_the_same_bytes_with_one_and_four_processes(tmp_path: Path, stage: str) -> None:
    made = []
    for count in (1, 4):
        folder = tmp_path / str(count)
        training_inputs.build(folder, processes=count)
        command = [sys.executable, "-m", f"stages.{stage}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        outs = (folder / "data" / training_inputs.OUT[stage], folder / "metrics")
        made.append([checksums(out) for out in outs])
        assert all(made[-1])
    assert made[0] == made[1]


def test_how_many_processes_there_are() -> None:
    assert [processes(wanted, microbatches=8) for wanted in (1, 2, 3, 5, 8, 20)] == [1, 2, 2, 4, 8, 8]
    assert processes(4, microbatches=1) == 1
    assert processes(0, microbatches=1024) >= 1


def test_processes_share_what_lies_below_a_node_of_the_tree() -> None:
    shares = [list(Group(rank, 4).share(8)) for rank in range(4)]
    assert shares == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_three_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="3 processes cannot share 8 microbatches"):
        join(8, torch.device("cpu"))
