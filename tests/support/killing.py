"""A small run of the engine in processes of its own. One is killed, and the run goes on.

The moment of the death depends on a seed.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow as pa
import torch

from pipeline.core.files import sha256
from pipeline.core.seeds import rng
from pipeline.engine.run import run_units
from pipeline.engine.work_unit import WorkUnit, units_of
from pipeline.store.shards import encode_npy
from pipeline.store.tables import Rows

ROOT = Path(__file__).parents[2]
UNITS = units_of("part", list(range(36)), 4)
TABLE = pa.schema({"item": pa.int32(), "values": pa.list_(pa.float32())})
VICTIMS = ("driver", "actor", "ray worker")


class Slow:
    """Takes a while over each item, and writes into the log which unit it has begun."""

    def __init__(self, log: Path):
        self.log = log

    def __call__(self, unit: WorkUnit):
        # A line this short is written at once, so that processes do not mix theirs.
        with open(self.log, "a") as file:
            file.write(f"{unit.name}\n")
        rows = Rows(TABLE)
        return self.samples(unit, rows), {"items": len(unit.items), "values": rows}

    def samples(self, unit: WorkUnit, rows: Rows):
        for item in unit.items:
            time.sleep(0.1)
            matrix = torch.from_numpy(rng(0, item).normal(size=(200, 200)).astype(np.float32))
            rows.rows.append({"item": item, "values": matrix[0].numpy()})
            yield f"item-{item:03d}", {"product.npy": encode_npy((matrix @ matrix).numpy())}


def drive(folder: Path, workers: int, address: str = "") -> None:
    """The run itself, in this process; the log goes to folder/log, the work to folder/scratch."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = SimpleNamespace(workers=workers, device="cpu", ray_address=address, object_store_mb=100)
    run_units(UNITS, partial(Slow, folder / "log"), folder / "scratch", machine, "kills")


def start(folder: Path, workers: int) -> subprocess.Popen:
    """The run in a process of its own.

    What it says goes to folder/errors: it would stop when a pipe is full.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.killing", str(folder), str(workers)]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "errors", "ab") as errors:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors)


@dataclass(frozen=True)
class Killing:
    """What came of it.

    `finished` is the number of units that were done when the victim died, `repeated` those that were done
    again, `shards` the checksums in the end.
    """

    killed: bool
    finished: int
    repeated: list[str]
    shards: dict[str, str]


def shards(folder: Path) -> dict[str, str]:
    scratch = folder / "scratch"
    files = sorted([*scratch.glob("*.tar*"), *scratch.glob("*.parquet")])
    return {path.name: sha256(path) for path in files}


def kill_one(folder: Path, victim: str, seed: int, workers: int = 2) -> Killing:
    """Run, kill the victim once, and start again as often as it takes.

    The victim dies after so many units as `seed` says, and a random part of a second.
    """
    # Nothing here waits for a fixed time: a machine may be slow. The victim dies when so many units are done.
    draw = rng(seed, "kill", victim)
    run = start(folder, workers)
    after, delay = int(draw.integers(0, len(UNITS) - 2)), float(draw.uniform(0, 0.4))
    while run.poll() is None and len(_done(folder)) < after:
        time.sleep(0.01)
    time.sleep(delay)
    while (found := _find(run, victim, draw)) is None and run.poll() is None:
        time.sleep(0.01)
    done = _done(folder)
    begun = _log(folder)
    if found:
        os.kill(found.pid, signal.SIGKILL)
    # A run that lost its driver has to be started again; one that lost a worker goes on by itself.
    for _ in range(3):
        if run.wait(300) == 0:
            break
        run = start(folder, workers)
    assert run.returncode == 0, (folder / "errors").read_text()
    return Killing(
        found is not None, len(done), sorted(done & set(_log(folder)[len(begun) :])), shards(folder)
    )


def _done(folder: Path) -> set[str]:
    return {path.name.split(".")[0] for path in (folder / "scratch").glob("*.done.json")}


def _log(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines() if (folder / "log").exists() else []


def _find(run: subprocess.Popen, victim: str, draw: np.random.Generator) -> psutil.Process | None:
    """A living process of the kind; Ray gives its workers names that begin with ray::."""
    try:
        driver = psutil.Process(run.pid)
        if victim == "driver":
            return driver if run.poll() is None else None
        named = [(process, " ".join(process.cmdline())) for process in driver.children(recursive=True)]
    # A process may end while it is looked at; the next look finds others.
    except psutil.Error:
        return None
    actors = [process for process, name in named if name.startswith("ray::") and "MapWorker" in name]
    others = [process for process, name in named if name.startswith("ray::") and "MapWorker" not in name]
    candidates = actors if victim == "actor" else others
    return candidates[int(draw.integers(len(candidates)))] if candidates else None


if __name__ == "__main__":
    drive(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
