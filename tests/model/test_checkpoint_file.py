"""Torch files as data: what they hold when they are honest, and that nothing happens when they are not."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.foreign.checkpoint_file import CheckpointFile, is_tensor, module_tensors
from pipeline.core.errors import UserError
from pipeline.networks.import_weights import import_weights
from tests.support.hostile_files import MARK, hostile_files, mutated_files
from tests.support.published_files import write_pickle, write_state
from tests.support.sizes import SMOKE_SIZES

ROOT = Path(__file__).parents[2]
MEMORY = 2 << 30
WATCHED = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "pickle.find_class",
    "ctypes.dlopen",
)


def odd_tensors() -> dict[str, Tensor]:
    """Tensors whose storage is not what they are."""
    base = torch.arange(24.0)
    state = {
        "whole": base,
        "turned": base.view(4, 6).T,
        "part": base[5:9],
        "steps": base[1::3],
        "none": torch.zeros(0, 3),
        "one": torch.tensor(2.5),
    }
    types = (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
    numbers = torch.tensor([0, 1, 2])
    for dtype in types:
        state[str(dtype)] = numbers.to(dtype)
    return state


@pytest.mark.parametrize("kind", ["zip", "old", "module"])
def test_tensors_are_what_was_saved(tmp_path, kind):
    # Module names have no dots, and a module has parts that its state dict leaves out.
    state = odd_tensors()
    if kind == "module":
        state = {key.replace(".", "_"): value for key, value in state.items()}
        stored = {f"deformer.{key}": value for key, value in state.items()}
        file = CheckpointFile(write_pickle(tmp_path / "file", stored, "Some"))
        found = module_tensors(file.content["G_ema"])
        nodes = {key.removeprefix("deformer."): node for key, node in found.items()}
        assert not {"passing", "none_of_these"} & nodes.keys()
    else:
        path = write_state(tmp_path / "file", state, legacy=kind == "old")
        file = CheckpointFile(path)
        nodes = file.content
        assert all(is_tensor(node) for node in nodes.values())
    for key, value in state.items():
        found = file.tensor(nodes[key])
        assert found.dtype == value.dtype, key
        assert torch.equal(found, value), key
        assert found.is_contiguous(), key


def child(folder: Path) -> dict[str, tuple[str, float]]:
    """Read every file of `folder` in a process that may take no more than MEMORY.

    What each ended in, and the seconds.
    """
    # One thread, as each takes memory for its stack.
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment = os.environ | own
    command = [sys.executable, "-m", "tests.model.test_checkpoint_file", str(folder)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    told = result.stdout[-1000:] + result.stderr[-3000:]
    assert result.returncode == 0, told
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines[-1][0] == "peak"
    assert lines[-1][1] < MEMORY
    assert not (folder / MARK).exists()
    return {name: (outcome, seconds) for name, outcome, seconds in lines[:-1]}


@pytest.mark.process
def test_hostile_files_end_in_a_clear_error(tmp_path):
    files = hostile_files()
    for name, data in files.items():
        (tmp_path / f"{name}.pkl").write_bytes(data)
    found = child(tmp_path)
    assert found.keys() == files.keys()
    for name, (outcome, _) in found.items():
        # A damaged head model is told by its side files, which are not there.
        starts = (f"nothing was imported. {name}.pkl", "nothing was imported. flame_addition")
        assert outcome.startswith(starts), (name, outcome)


@pytest.mark.process
def test_mutated_files_neither_run_nor_hang_nor_crash(tmp_path):
    count = 0
    for name, data in mutated_files(75, tmp_path):
        (tmp_path / f"{name}.pkl").write_bytes(data)
        count += 1
    found = child(tmp_path)
    assert len(found) == count == 300


def read_all(folder: Path) -> None:
    """What the child process does: prints for every file of the folder how reading it ended."""
    events: list[str] = []

    def watch(event: str, _: tuple) -> None:
        if event in WATCHED:
            events.append(event)

    sys.addaudithook(watch)
    # What torch reserves when it is loaded does not count.
    limit = own_memory("VmSize") + MEMORY - own_memory("VmHWM")
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for path in sorted(folder.glob("*.pkl")):
        started = time.monotonic()
        try:
            import_weights(Path(path.name), folder / "out", SMOKE_SIZES)
            outcome = "imported"
        except UserError as error:
            outcome = str(error)[:300]
        if outcome.startswith("nothing was imported") and "tensors" in outcome:
            outcome += every_tensor(path)
        seconds = round(time.monotonic() - started, 3)
        print(json.dumps([path.stem, outcome, seconds]))
    # What was watched would have happened while files were read.
    assert not events, events
    print(json.dumps(["peak", own_memory("VmHWM")]))


def own_memory(name: str) -> int:
    """Bytes that Linux states of this process under `name` of /proc/self/status.

    getrusage will not do: a process begins with the peak of the one that started it, here all of pytest's.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def every_tensor(path: Path) -> str:
    """Decode what a file of no known network has."""
    try:
        file = CheckpointFile(path)
        nodes = file.content
        if "G_ema" in nodes:
            nodes = module_tensors(nodes["G_ema"])
        count = sum(file.tensor(node).numel() for node in nodes.values())
        return f" ({count} numbers)"
    except (ValueError, AttributeError, TypeError) as error:
        return f" ({error})"[:200]


if __name__ == "__main__":
    read_all(Path(sys.argv[1]))
