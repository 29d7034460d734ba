"""The usable faces of a split: who they are and what is known of them, without their pictures.

Two million faces have four gigabytes of landmarks and labels. Those are arrays on disk, which all processes
of a training share (pipeline/engine/mapped.py).
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.errors import UserError
from pipeline.engine.mapped import mapped_folder
from pipeline.geometry.label import Label
from pipeline.geometry.landmarks import landmarks_70
from pipeline.store.samples import Aligned
from pipeline.store.shards import ShardReader
from pipeline.store.tables import MESH, OK, matrix, read_batches, read_columns

# So many rows, evenly spread, stand for all where a mean or a regression is taken over more.
SAMPLE = 1 << 14


@dataclass(frozen=True)
class FaceRows:
    """N faces: frames, and behind them portraits, if it is the train split."""

    keys: pa.StringArray  # (N,)
    clips: np.ndarray  # (N,) int32, a number for each clip from 0 on, and -1 for portraits
    clip_names: list[str]  # by number
    points: np.ndarray  # (N, 70, 2) float32, fractions of the image
    labels: np.ndarray  # (N, 437) float32, NaN where the fit was rejected
    fitted: np.ndarray  # (N,) bool
    reader: ShardReader

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, row: int) -> np.ndarray:
        """The picture of a face, (S, S, 3) uint8."""
        return Aligned.image.array(self.reader[self.keys[row].as_py()])


def face_rows(
    ingest: Path,
    labels: Path,
    split: str,
    item: str,
) -> FaceRows:
    """The faces of `split`; `item` of the stage pretrain is for messages.

    Raises UserError when there is none, or when a table is missing.
    """
    tables = _tables(ingest, split)
    frames = read_columns(tables[0], Aligned.stage, ["key", "clip"], _wanted(tables[0], split))
    parts = frames["key"].chunks
    for path in tables[1:]:
        parts += read_columns(path, Aligned.stage, ["key"], _wanted(path, split))["key"].chunks
    keys = pa.chunked_array(parts, pa.string()).combine_chunks()
    if not len(keys) or (item == "motion" and not len(frames)):
        raise UserError(
            f"pretrain {item}: {ingest} has no usable frame of a {split} clip. "
            "Look into the reasons in its tables."
        )
    sources = (*tables, labels / "ffhq.parquet", labels / "vfhq.parquet")
    build = partial(_build, keys, tables, sources[len(tables) :], split)
    folder = mapped_folder(f"faces-{split}", build, __file__, split, *sources)
    clips = frames["clip"].combine_chunks().dictionary_encode()
    portraits = len(keys) - len(frames)
    alone = np.full(portraits, -1, np.int32)
    return FaceRows(
        keys=keys,
        clips=np.concatenate([clips.indices.to_numpy(), alone]),
        clip_names=clips.dictionary.to_pylist(),
        points=np.load(folder / "points.npy", mmap_mode="r"),
        labels=np.load(folder / "labels.npy", mmap_mode="r"),
        fitted=np.load(folder / "fitted.npy"),
        reader=ShardReader(ingest / "shards", Aligned.stage),
    )


def evenly(count: int) -> np.ndarray:
    """All of `count` rows, or SAMPLE of them that are spread evenly."""
    places = np.linspace(0, count - 1, min(count, SAMPLE))
    return np.unique(places.astype(int))


def _tables(ingest: Path, split: str) -> list[Path]:
    """The tables whose faces belong to a split."""
    names = ["frames", "portraits"] if split == "train" else ["frames"]
    return [ingest / f"{name}.parquet" for name in names]


def _wanted(path: Path, split: str) -> pc.Expression:
    usable = pc.field("status") == OK
    return usable & (pc.field("split") == split) if path.stem == "frames" else usable


def _build(
    keys: pa.StringArray,
    tables: list[Path],
    fits: tuple[Path, ...],
    split: str,
    folder: Path,
) -> None:
    """Write landmarks and labels of the faces `keys` to arrays in `folder`."""
    count = len(keys)
    points = _array(folder / "points.npy", (count, 70, 2))
    start = 0
    for path in tables:
        columns = ["status", "landmarks", *(["split"] if path.stem == "frames" else [])]
        for batch in read_batches(path, Aligned.stage, columns):
            rows = pa.Table.from_batches([batch]).filter(_wanted(path, split))
            # The frames of a split lie together: most pieces of a table have none of another one.
            if not len(rows):
                continue
            meshes = matrix(rows, "landmarks").reshape(len(rows), MESH, 3)
            points[start : start + len(rows)] = landmarks_70(meshes)
            start += len(rows)
    labels = _array(folder / "labels.npy", (count, Label.SIZE))
    labels[:] = np.nan
    fitted = np.zeros(count, bool)
    for path in fits:
        for batch in read_batches(path, "fit_flame", ["key", "status", "label"]):
            rows = pa.Table.from_batches([batch])
            good = rows.filter(pc.field("status") == OK)
            if not len(good):
                continue
            # Each batch is looked up among all keys: those of the tables need not be in one order.
            found = pc.index_in(good["key"], keys).to_numpy()
            known = ~np.isnan(found.astype(float))
            rows = found[known].astype(int)
            labels[rows] = matrix(good, "label")[known]
            fitted[rows] = True
    np.save(folder / "fitted.npy", fitted)


def _array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A new array on disk, float32."""
    return np.lib.format.open_memmap(path, "w+", np.float32, shape)
