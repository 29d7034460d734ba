"""How fast the loader of Psi reads, beside what the trainer consumes and beside plain readers, in one run.

    python -m tests.benchmarks.reading data/views [--json FILE]

Run in the folder of a project whose graph has run (data/views, data/pretrain/perception, params.yaml). The
plain readers take PNGs as files of their own, and a WebDataset in order. The 512 x 512 samples are frames
of that cache, enlarged and with grain of two grey levels, so that their PNGs are no smaller than a photo's.
Everything is in the page cache. A sample is a pair of frames with all that a training step needs of it,
decoded to tensors. Rates are by CPU seconds of one thread, which other programs on the machine hardly
change; only opening is by the wall. The index of 2,000,000 rows takes 1.4 GB of disk meanwhile.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset

from pipeline.config.params import load_params
from pipeline.core.files import write_bytes
from pipeline.store.codecs import PNG, decode_picture
from pipeline.store.shards import ShardReader, write_shard
from pipeline.store.view_index import NAME, ROW_GROUP, SCHEMA, ViewIndex, write_index
from pipeline.train.view_batches import PseudoMultiView
from tests.benchmarks.record import record
from tests.benchmarks.training_step import cpu_seconds, loader, training_step

ROWS, FRAMES_OF_A_CLIP, FIELDS = 2_000_000, 200, 15
BIG, BIG_FRAMES = 512, 48
# The paper: 10 pictures a second by a forward pass on an A100. A training sample is at least a forward and a
# backward pass, three forwards.
PAPER_A_GPU, GPUS = 10 / 3, 8
# In a process of its own, whose peak of memory nothing else has raised.
OPEN = """
import sys, time
from pathlib import Path
from pipeline.store.view_index import ViewIndex
import pyarrow.parquet

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("VmHWM"))
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
    """An index of ROWS frames of no shards, sized as the paper's: 200 frames a clip, 256 a shard, 4 views."""
    # Random sizes and checksums compress as badly as real ones.
    draw = np.random.default_rng(0)
    fields = json.dumps([f"view{i}.png" for i in range(FIELDS)])
    schema = SCHEMA.with_metadata({"fields": fields})
    with pq.ParquetWriter(folder / NAME, schema, compression="zstd") as out:
        for start in range(0, ROWS, ROW_GROUP):
            frames = np.arange(start, min(start + ROW_GROUP, ROWS))
            out.write_table(pa.table(some_rows(frames, draw), SCHEMA), ROW_GROUP)


def some_rows(frames: np.ndarray, draw: np.random.Generator) -> dict[str, Any]:
    """The columns of the index for some frames."""
    n = len(frames)
    clips, places = frames // FRAMES_OF_A_CLIP, frames % FRAMES_OF_A_CLIP
    names = [f"clip-of-somebody-{clip:06d}-abcdef" for clip in clips]
    sizes = draw.integers(1000, 400_000, n * FIELDS).astype(np.uint32)
    checksums = draw.integers(0, 2**32, n * FIELDS, dtype=np.uint32)
    cameras = draw.normal(size=n * 125).astype(np.float32)
    kept = draw.random(n) > 0.02
    return {
        "key": [f"{name}-{place:06d}" for name, place in zip(names, places, strict=True)],
        "clip": names,
        "split": ["test" if clip % 100 == 0 else "train" for clip in clips],
        "index": places,
        "shard": [f"views-{frame // 256:06d}.tar" for frame in frames],
        "offset": frames % 256 * 3_000_000,
        "size": np.full(n, 3_000_000),
        "sizes": lists(sizes, FIELDS),
        "crcs": lists(checksums, FIELDS),
        "cameras": lists(cameras, 125),
        "psnr": draw.random(n).astype(np.float32),
        "coverage": draw.random(n).astype(np.float32),
        "identity": draw.random(n).astype(np.float32),
        "kept": kept,
        "reason": np.where(kept, "", "psnr"),
    }


def lists(values: np.ndarray, length: int) -> pa.ListArray:
    """Values as a column of lists of one length."""
    ends = np.arange(0, len(values) + 1, length)
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(values))


def enlarge(views: Path, out: Path) -> None:
    """Some frames of the cache, of 6 clips, at BIG x BIG."""
    reader = ShardReader(views / "shards")
    draw = np.random.default_rng(0)
    samples = []
    index = ViewIndex(views)
    clips, _ = index.clips("train")
    chosen = []
    for frames in list(clips.values())[:6]:
        chosen += [int(frame) for frame in frames[: BIG_FRAMES // 6]]
    for frame in chosen:
        key = index.key(frame)
        fields = reader.read(key)
        for name, data in fields.items():
            if name.endswith(".png"):
                fields[name] = enlarged(name, data, draw)
        samples.append((key, fields))
    for start in range(0, len(samples), 16):
        write_shard(out / f"shards/views-{start // 16:06d}.tar", samples[start : start + 16])
    write_index(out / "shards", out / NAME, lambda quality: "")


def enlarged(
    name: str,
    data: bytes,
    draw: np.random.Generator,
) -> bytes:
    """A PNG at BIG x BIG, with grain if it is a photo."""
    # Masks and coordinates are smooth in a real cache, too, and get no grain.
    image = cv2.resize(decode_picture(data), (BIG, BIG), interpolation=cv2.INTER_CUBIC)
    grain = draw.normal(0, 2, image.shape) if image.ndim == 3 and name != "uv.png" else 0
    return PNG.encode((image + grain).round().clip(0, 255).astype(np.uint8))


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
    """What a plain sequential reader has in hand: two frames in a row, whatever is asked for."""

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


def rates(
    data: PseudoMultiView,
    views: Path,
    scratch: Path,
    steps: int,
) -> dict[str, float]:
    """Samples a CPU second of the loader, and of the same choices from elsewhere."""
    # One loader draws and decodes for all of them: only where the bytes come from differs.
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
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        scratch = Path(folder)
        write_rows(scratch)
        command = [sys.executable, "-c", OPEN, str(scratch)]
        opened = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        # Its 1.4 GB are not needed any more, and the enlarged samples want space.
        (scratch / NAME).unlink()
        names = ("open_seconds", "open_bytes", "all_places_seconds", "all_places_bytes", "imports_bytes")
        rows = {name: round(float(value), 3) for name, value in zip(names, opened, strict=True)}
        results["two_million_rows"] = rows
        peak, places, imports = (
            rows[name] / 2**20 for name in ("open_bytes", "all_places_bytes", "imports_bytes")
        )
        print(f"2,000,000 rows: open in {rows['open_seconds']:.2f} s")
        print(f"  peak memory {peak:.0f} MiB, {places:.0f} with all places loaded, {imports:.0f} of imports")

        # Batches are read before the clock runs, so that the steps alone are timed.
        data = loader(params, arguments.views)
        step = training_step(params, Path("data/pretrain/perception"))
        batches = [data.batch(i, params.train.batch) for i in range(8)]
        seconds = cpu_seconds(lambda i: step(i, batches[i % 8]), 12)
        consumed = params.train.batch / seconds * params.threads
        results["trainer"] = round(consumed, 2)
        taken = f"at most {consumed:.1f} samples a second with {params.threads} threads"
        print(f"the trainer at scale {params.scale}: {taken}")
        small = scratch / "small"
        small.mkdir()
        results["demo"] = rates(data, arguments.views, small, 100)
        report(results["demo"], consumed)

        big = scratch / "big"
        enlarge(arguments.views, big)
        results["paper"] = rates(loader(params, big), big, big, 12)
        results["paper_trainer_a_gpu"] = round(PAPER_A_GPU, 2)
        taken = f"at most {PAPER_A_GPU:.1f} samples a second and GPU, {PAPER_A_GPU * GPUS:.0f} with {GPUS}"
        print(f"at {BIG} x {BIG}; the paper's trainer takes {taken}")
        report(results["paper"], PAPER_A_GPU)
    record(arguments.json, "reading", results)


def report(found: dict[str, float], consumed: float) -> None:
    for name, value in found.items():
        times = f"{value / consumed:6.1f} times what the trainer takes"
        print(f"  {name:20} {value:8.1f} samples a second, {times}")


if __name__ == "__main__":
    main()
