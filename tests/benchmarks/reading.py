"""How fast the loader of Psi reads, beside what the trainer consumes and other readers.

    python -m tests.benchmarks.reading data/views [--json FILE]

Run in the folder of a project whose graph has run (data/views, data/pretrain/perception, params.yaml). The
other readers are of PNG files, and a plain sequential one of WebDataset. The 512 x 512 samples are frames of
that cache, enlarged and with grain of two grey levels, so that their PNGs are no smaller than a photo's.
Everything is in the page cache. A sample is a pair of frames with all that a training step needs of it,
decoded to tensors. Rates are by CPU seconds of one thread, which other programs on the machine hardly change;
only opening is by the wall. The index of 2,000,000 rows takes 1.4 GB of disk meanwhile.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset

from pipeline.config.params import load_params
from pipeline.core.files import write_bytes, write_json
from pipeline.core.paths import PERCEPTION
from pipeline.store.shards import ShardReader, decode_png, encode_png, write_shard
from pipeline.store.view_index import NAME, ROW_GROUP, SCHEMA, ViewIndex, write_index
from pipeline.train.view_batches import PseudoMultiView
from tests.benchmarks.training_step import cpu_seconds, loader, training_step

ROWS, FRAMES_OF_A_CLIP, FIELDS = 2_000_000, 200, 15
BIG, BIG_FRAMES = 512, 48
# The paper: 10 pictures a second by a forward pass on an A100. A training sample is at least a forward and a
# backward pass, as much as three forwards.
PAPER_A_GPU, GPUS = 10 / 3, 8
OPEN = """
import sys, time
from pathlib import Path
from pipeline.store.view_index import ViewIndex
import pyarrow.parquet

def peak():
    status = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in status if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

before, began = peak(), time.perf_counter()
index = ViewIndex(sys.argv[1])
index.clips("train")
opened = time.perf_counter() - began, peak()
began = time.perf_counter()
for group in range(len(index._starts) - 1):
    index._load(group)
print(*opened, time.perf_counter() - began, peak(), before)
"""


def write_rows(folder: Path) -> None:
    """An index of ROWS frames of no shards, at the sizes of the paper.

    These are 200 frames a clip, 256 a shard, and 4 views.
    """
    draw = np.random.default_rng(0)
    with pq.ParquetWriter(
        folder / NAME,
        SCHEMA.with_metadata({"fields": json.dumps([f"view{i}.png" for i in range(FIELDS)])}),
        compression="zstd",
    ) as out:
        for start in range(0, ROWS, ROW_GROUP):
            frames = np.arange(start, min(start + ROW_GROUP, ROWS))
            n = len(frames)
            clips, lists = frames // FRAMES_OF_A_CLIP, pa.array(np.arange(n + 1) * FIELDS, pa.int32())
            columns = {
                "key": [
                    f"clip-of-somebody-{clip:06d}-abcdef-{frame % FRAMES_OF_A_CLIP:06d}"
                    for clip, frame in zip(clips, frames, strict=True)
                ],
                "clip": [f"clip-of-somebody-{clip:06d}-abcdef" for clip in clips],
                "split": ["test" if clip % 100 == 0 else "train" for clip in clips],
                "index": frames % FRAMES_OF_A_CLIP,
                "shard": [f"views-{frame // 256:06d}.tar" for frame in frames],
                "offset": frames % 256 * 3_000_000,
                "size": np.full(n, 3_000_000),
                "sizes": pa.ListArray.from_arrays(
                    lists, pa.array(draw.integers(1000, 400_000, n * FIELDS).astype(np.uint32))
                ),
                "crcs": pa.ListArray.from_arrays(
                    lists, pa.array(draw.integers(0, 2**32, n * FIELDS, dtype=np.uint32))
                ),
                "cameras": pa.ListArray.from_arrays(
                    pa.array(np.arange(n + 1) * 125, pa.int32()),
                    pa.array(draw.normal(size=n * 125).astype(np.float32)),
                ),
                **{name: draw.random(n).astype(np.float32) for name in ("psnr", "coverage", "identity")},
                "kept": (kept := draw.random(n) > 0.02),
                "reason": np.where(kept, "", "psnr"),
            }
            out.write_table(pa.table(columns, SCHEMA), ROW_GROUP)


def enlarge(views: Path, out: Path) -> None:
    """Some frames of the cache, of 6 clips, at BIG x BIG."""
    reader, draw, samples = ShardReader(views / "shards"), np.random.default_rng(0), []
    clips, _ = ViewIndex(views).clips("train")
    index = ViewIndex(views)
    for frame in [frame for frames in list(clips.values())[:6] for frame in frames[: BIG_FRAMES // 6]]:
        key = index.key(int(frame))
        fields = reader.read(key)
        for name in [name for name in fields if name.endswith(".png")]:
            image = cv2.resize(decode_png(fields[name]), (BIG, BIG), interpolation=cv2.INTER_CUBIC)
            grain = draw.normal(0, 2, image.shape) if image.ndim == 3 and name != "uv.png" else 0
            fields[name] = encode_png((image + grain).round().clip(0, 255).astype(np.uint8))
        samples.append((key, fields))
    for start in range(0, len(samples), 16):
        write_shard(out / f"shards/views-{start // 16:06d}.tar", samples[start : start + 16])
    write_index(out / "shards", out / NAME, lambda quality: "")


class Files:
    """The fields of a cache as files of their own, behind the same interface."""

    def __init__(self, index: ViewIndex, folder: Path) -> None:
        self.views, self.folder = index.views, folder
        self.keys = index.columns(["key"])["key"].to_pylist()
        for frame, key in enumerate(self.keys):
            for name, data in index.read(frame, index.fields).items():
                write_bytes(folder / key / name, data)

    def read(self, frame: int, names: set[str]) -> dict[str, bytes]:
        return {name: (self.folder / self.keys[frame] / name).read_bytes() for name in names}


class InOrder:
    """What a plain sequential reader has in hand: two frames that follow each other."""

    def __init__(self, views: Path) -> None:
        self.views = ViewIndex(views).views
        self.urls = [str(path) for path in sorted((views / "shards").glob("*.tar"))]
        self.stream = iter(())

    def read(self, frame: int, names: set[str]) -> dict[str, bytes]:
        found = next(self.stream, None)
        if found is None:
            self.stream = iter(webdataset.WebDataset(self.urls, shardshuffle=False))
            found = next(self.stream)
        return found


def rates(data: PseudoMultiView, views: Path, scratch: Path, steps: int) -> dict[str, float]:
    """Samples a CPU second of the loader, and of the same choices from elsewhere."""
    batch, index = 4, data.index
    readers = {
        "loader": index,
        "files": Files(index, scratch / "files"),
        "WebDataset in order": InOrder(views),
    }
    found = {}
    for name, data.index in readers.items():
        found[name] = round(batch / cpu_seconds(lambda i: data.batch(i, batch), steps), 1)
    data.index = index
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("views", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    params = load_params()
    torch.set_num_threads(1)
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        scratch = Path(folder)
        write_rows(scratch)
        opened = subprocess.run(
            [sys.executable, "-c", OPEN, str(scratch)], capture_output=True, text=True, check=True
        ).stdout.split()
        (scratch / NAME).unlink()
        names = ("open_seconds", "open_bytes", "all_places_seconds", "all_places_bytes", "imports_bytes")
        rows = {name: round(float(value), 3) for name, value in zip(names, opened, strict=True)}
        results["two_million_rows"] = rows
        opening, places, imports = (
            rows[f"{name}_bytes"] / 2**20 for name in ("open", "all_places", "imports")
        )
        memory = f"{opening:.0f} MiB, {places:.0f} MiB with all places loaded, {imports:.0f} MiB of imports"
        print(f"2,000,000 rows: open in {rows['open_seconds']:.2f} s; peak memory {memory}")

        data = loader(params, arguments.views)
        step = training_step(params, PERCEPTION)
        batches = [data.batch(i, params.train.batch) for i in range(8)]
        consumed = params.train.batch / cpu_seconds(lambda i: step(i, batches[i % 8]), 12) * params.threads
        results["trainer"] = round(consumed, 2)
        rate = f"at most {consumed:.1f} samples a second with {params.threads} threads"
        print(f"the trainer at scale {params.scale}: {rate}")
        (scratch / "small").mkdir()
        results["demo"] = found = rates(data, arguments.views, scratch / "small", 100)
        report(found, consumed)

        enlarge(arguments.views, scratch / "big")
        found = rates(loader(params, scratch / "big"), scratch / "big", scratch / "big", 12)
        results["paper"], results["paper_trainer_a_gpu"] = found, round(PAPER_A_GPU, 2)
        rate = f"{PAPER_A_GPU:.1f} samples a second and GPU, {PAPER_A_GPU * GPUS:.0f} with {GPUS}"
        print(f"at {BIG} x {BIG}; the paper's trainer takes at most {rate}")
        report(found, PAPER_A_GPU)
    if arguments.json:
        write_json(arguments.json, results)


def report(found: dict[str, float], consumed: float) -> None:
    for name, value in found.items():
        times = f"{value / consumed:6.1f} times what the trainer takes"
        print(f"  {name:20} {value:8.1f} samples a second, {times}")


if __name__ == "__main__":
    main()
