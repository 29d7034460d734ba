"""What the engine costs: `python -m tests.benchmarks.engine [FRAMES] [--json FILE]`.

One run prints frames per second of render_views

- in a bare loop: the same worker, called unit by unit in this process, its samples thrown away; - through
the engine with one worker and with two, one thread of torch each, from the first unit's start to the
  last one's record; the time with the start of Ray, the loading of the networks in each process and the end
  stands beside it.
"""

import argparse
import tempfile
import time
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from model.psi.motion_encoder import MotionEncoder
from model.psi.network import Psi
from pipeline.config.params import Params
from pipeline.config.scales import scale_params
from pipeline.core.seeds import rng
from pipeline.engine.isolation import set_torch
from pipeline.engine.run import run_units
from pipeline.engine.work_unit import WorkUnit, finished, record_path, units_of
from pipeline.networks.weights import save_weights
from pipeline.render.views import ViewRenderer
from pipeline.store.codecs import PNG
from pipeline.store.shards import write_shard
from pipeline.store.tables import write_table
from tests.benchmarks.record import record
from tests.support.render_inputs import save_judges, write_labels


def make_inputs(
    folder: Path,
    params: Params,
    count: int,
) -> list[str]:
    """Noise for frames and networks that know nothing: it takes as long as the real thing."""
    size = params.networks.image
    names = [(f"clip-{index:06d}", "clip", "train") for index in range(count)]
    write_labels(folder / "labels.parquet", names)
    rows, samples = [], []
    for index, (key, clip, split) in enumerate(names):
        draw = rng(0, key)
        image = draw.integers(0, 255, (size, size, 3), np.uint8)
        mesh = draw.uniform(0.3, 0.7, 478 * 3).astype(np.float32)
        samples.append((key, {"image.png": PNG.encode(image), "mask.png": PNG.encode(image[..., 0])}))
        row = {
            "key": key,
            "clip": clip,
            "index": index,
            "split": split,
            "shard": "clips-000000.tar",
            "status": "ok",
            "landmarks": mesh.tolist(),
        }
        rows.append(row)
    write_shard(folder / "ingest/shards/clips-000000.tar", samples)
    write_table(folder / "ingest/frames.parquet", pa.Table.from_pylist(rows))
    torch.manual_seed(0)
    save_weights(folder / "psi3d/psi3d.safetensors", Psi(params.networks).state_dict(), {})
    save_weights(folder / "motion/motion.safetensors", MotionEncoder(params.networks.motion).state_dict(), {})
    save_judges(folder / "perception", params.networks)
    return [key for key, *_ in names]


def bare(make, units: list[WorkUnit]) -> float:
    """Frames per second."""
    # As the engine sets its processes up, or the comparison would be one of threads.
    set_torch(1, not torch.cuda.is_available())
    worker = make()
    # The first samples pay for what is loaded lazily.
    exhaust(worker, WorkUnit("warm", units[0].items[:4]))
    started = time.monotonic()
    for unit in units:
        exhaust(worker, unit)
    frames = sum(len(unit.items) for unit in units)
    return frames / (time.monotonic() - started)


def exhaust(worker, unit: WorkUnit) -> None:
    """Make all samples of a unit and throw them away."""
    samples = worker(unit)[0]
    deque(samples, maxlen=0)


def engine(
    make,
    units: list[WorkUnit],
    scratch: Path,
    params: Params,
    workers: int,
) -> tuple[float, float]:
    """Frames per second while units are worked on, and with everything around it."""
    machine = params.machine.model_copy(update={"workers": workers})
    started = time.monotonic()
    run_units(units, make, scratch, machine, f"{workers} workers", {"frames": 1})
    whole = time.monotonic() - started
    # A record is the last file of a unit, and says how long the unit took.
    starts, ends = [], []
    for unit in units:
        end = record_path(unit, scratch).stat().st_mtime
        ends.append(end)
        starts.append(end - finished(unit, scratch, verify=False).seconds)
    frames = sum(len(unit.items) for unit in units)
    return frames / (max(ends) - min(starts)), frames / whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("frames", type=int, nargs="?", default=256)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    params = scale_params("demo")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = make_inputs(folder, params, arguments.frames)
        units = units_of("views", keys, max(len(keys) // 8, 1))
        make = partial(
            ViewRenderer,
            params,
            folder / "ingest",
            folder / "labels.parquet",
            *(folder / part for part in ("motion", "perception", "psi3d")),
        )
        loop = bare(make, units)
        print(f"bare loop   {loop:6.2f} frames/s", flush=True)
        rates, numbers = {}, {}
        for workers in (1, 2):
            scratch = folder / f"scratch{workers}"
            rates[workers], whole = engine(make, units, scratch, params, workers)
            numbers[str(workers)] = {"working": rates[workers], "whole": whole}
            told = f"{rates[workers]:6.2f} frames/s, {whole:.2f} with start and end"
            print(f"{workers} workers   {told}", flush=True)
        # Before and after: a machine that got slower meanwhile would look like an overhead.
        again = bare(make, units)
        print(f"bare loop   {again:6.2f} frames/s, again")
        overhead = 2 * rates[1] / (loop + again)
        gain = rates[2] / rates[1]
        print(f"one worker over the mean bare loop {overhead:.2f}, two workers over one {gain:.2f}")
        record(arguments.json, "engine", {"bare": [loop, again], "engine": numbers})


if __name__ == "__main__":
    main()
