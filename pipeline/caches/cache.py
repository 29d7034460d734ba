"""A cache opened for reading: its entries, what was rejected and why, pictures and cameras of samples."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.caches.kinds import GENHEAD, INGEST, VIEWS, Layout, layout_of
from pipeline.core.errors import UserError
from pipeline.store.samples import CAMERA, Aligned, Heads, Views
from pipeline.store.shards import ShardReader
from pipeline.store.tables import OK, read_rows, usable
from pipeline.store.view_index import QUALITY, ViewIndex

SHOWN = 4  # clips that are named in a message


@dataclass(frozen=True)
class Entry:
    """A sample as its table lists it.

    `clip` is the name of the shard where there are no clips (portraits, synthetic heads).
    """

    key: str
    clip: str
    index: int
    split: str
    quality: dict[str, float] = field(default_factory=dict)
    kept: bool = True  # for training


class IndexedShards:
    """The shards of a multi-view cache by its index, which knows all that their sidecars know.

    It opens a cache at an address without a look at its shards.
    """

    def __init__(self, index: ViewIndex):
        self._index = index
        table = index.columns(["key", "shard", "size"])
        self._frames = {key: frame for frame, key in enumerate(table["key"].to_pylist())}
        self._shards = table["shard"].to_pylist()
        sums = table.group_by("shard").aggregate([("size", "sum")]).to_pylist()
        self.sizes: dict[str, int] = {row["shard"]: row["size_sum"] for row in sums}

    def shard(self, key: str) -> str:
        """The file name of the shard that holds a sample."""
        return self._shards[self._frames[key]]

    def fields(self, key: str) -> list[str]:
        """The names of the fields of a sample: all have the same."""
        return self._index.fields

    def read(self, key: str) -> dict[str, bytes]:
        """All fields of a sample."""
        return self._index.read(self._frames[key], self._index.fields)

    def __getitem__(self, key: str) -> Mapping[str, bytes]:
        return self.read(key)

    @cached_property
    def _cameras(self) -> np.ndarray:
        return self._index.cameras()

    def cameras(self, key: str) -> np.ndarray:
        """The cameras (1 + N, 25) of a sample."""
        return self._cameras[self._frames[key]]


class Cache:
    """A cache opened for reading.

    For a multi-view cache `folder` may be anything that fsspec knows: http://host/views.
    """

    def __init__(self, folder: str | Path):
        """Raises UserError when it is none, damaged or of another format."""
        remote = "://" in str(folder)
        self.folder: str | Path = str(folder) if remote else Path(folder)
        self.layout: Layout = VIEWS if remote else layout_of(Path(folder))
        self.rejected: Counter[str] = Counter()
        self.reader: ShardReader | IndexedShards
        if self.layout is VIEWS:
            index = ViewIndex(folder)
            self.reader = IndexedShards(index)
            self.entries = self._views(index)
            return
        self.reader = ShardReader(Path(folder) / "shards", self.layout.stage)
        self.entries = self._heads(self.reader) if self.layout is GENHEAD else self._faces(Path(folder))

    def _views(self, index: ViewIndex) -> list[Entry]:
        place = ("key", "clip", "index", "split")
        rows = index.columns([*place, *QUALITY, "kept", "reason"]).to_pylist()
        # What was rejected before rendering is listed in the tables of ingest alone.
        if isinstance(self.folder, Path) and (ingested := self.folder.parent / "ingest").is_dir():
            rendered = {row["key"] for row in rows}
            for row in self._rows(ingested, "frames", ["key", "status", "reason"]):
                if row["key"] not in rendered:
                    reason = "no fitted head" if row["status"] == OK else _kind(row["reason"])
                    self.rejected[reason] += 1
        self.rejected.update(f"not trained on, low {row['reason']}" for row in rows if not row["kept"])
        entries = []
        for row in rows:
            quality = {name: row[name] for name in QUALITY}
            entries.append(Entry(*(row[name] for name in place), quality, row["kept"]))
        return entries

    def _heads(self, reader: ShardReader) -> list[Entry]:
        entries = []
        for key in reader:
            shard = Path(reader.shard(key)).stem
            number = int(key.rpartition("-")[2])
            entries.append(Entry(key, shard, number, "train"))
        return entries

    def _faces(self, folder: Path) -> list[Entry]:
        columns = ["key", "status", "reason", "shard", "score"]
        portraits = self._rows(folder, "portraits", columns)
        frames = self._rows(folder, "frames", [*columns, "clip", "index", "split"])
        rejected = [row for row in portraits + frames if row["status"] != OK]
        self.rejected.update(_kind(row["reason"]) for row in rejected)
        for number, row in enumerate(portraits):
            row |= {"clip": Path(row["shard"] or "").stem, "index": number, "split": "portrait"}
        return [
            Entry(row["key"], row["clip"], row["index"], row["split"], {"score": row["score"]})
            for row in usable(portraits + frames)
        ]

    @staticmethod
    def _rows(folder: Path, name: str, columns: list[str]) -> list[dict[str, Any]]:
        """The rows of a table of ingest. Raises UserError that names `psi4d verify`."""
        try:
            return read_rows(folder / f"{name}.parquet", INGEST.stage, columns)
        except UserError as error:
            raise UserError(f"{error} `psi4d verify {folder}` says what is wrong.") from error

    @property
    def qualities(self) -> list[str]:
        """The names of the numbers of quality."""
        return list(self.entries[0].quality) if self.entries else []

    @property
    def has_real(self) -> bool:
        """Whether a sample begins with a real frame."""
        return self.layout is not GENHEAD

    def chosen(self, clip: str | None, frame: int | None) -> list[Entry]:
        """The entries of a clip (or with that key) with that index. Raises UserError when there is none."""
        found = [
            entry
            for entry in self.entries
            if clip in (None, entry.clip, entry.key) and frame in (None, entry.index)
        ]
        if found:
            return found
        asked = [f"clip {clip}"] if clip is not None else []
        asked += [f"frame {frame}"] if frame is not None else []
        clips = sorted({entry.clip for entry in self.entries})
        some = ", ".join(clips[:SHOWN]) + (" ..." if len(clips) > SHOWN else "")
        raise UserError(
            f"{self.folder} has no {' '.join(asked)}. Its {len(clips)} clips: {some}; "
            f"`psi4d inspect {self.folder} --clip NAME` lists frames."
        )

    def cameras(self, key: str) -> np.ndarray:
        """The cameras of a sample (N, 25), none (0, 25) where there are no cameras."""
        if self.layout is INGEST:
            return np.zeros((0, CAMERA), np.float32)
        if isinstance(self.reader, IndexedShards):
            return self.reader.cameras(key)
        return Heads.cameras.array(self.reader[key])

    def views(self, key: str) -> list[np.ndarray]:
        """The pictures (S, S, 3) of a sample in the order of its cameras.

        A real frame comes first, if there is one.
        """
        sample = self.reader[key]
        pictures = [Aligned.image.array(sample)] if self.has_real else []
        count = sum(name.startswith("view") for name in self.reader.fields(key))
        field = Heads.view if self.layout is GENHEAD else Views.view
        return pictures + [field.array(sample, number) for number in range(count)]

    def mask(self, key: str) -> np.ndarray:
        """The mask of the real frame, or the opacity of the first view of a synthetic head: (n, n) uint8."""
        sample = self.reader[key]
        if self.has_real:
            return Aligned.mask.array(sample)
        opacities = Heads.opacity.array(sample)
        return opacities[: opacities.shape[1]]


def _kind(reason: str) -> str:
    return reason.split(":")[0]


def angles(cameras_N25: np.ndarray) -> np.ndarray:
    """Yaw and pitch (degrees) and radius (world units) of cameras around the world origin, (N, 3).

    They are those of `camera.look_at`.
    """
    x, y, z = np.asarray(cameras_N25, np.float64)[:, [3, 7, 11]].T
    radius = np.sqrt(x * x + y * y + z * z)
    yaw, pitch = np.arctan2(-x, z), np.arcsin(y / radius)
    return np.stack([np.degrees(yaw), np.degrees(pitch), radius], axis=1)


def view_names(cache: Cache, pictures: int) -> list[str]:
    """What the first `pictures` of `Cache.views` are called: real, 0, 1 and so on."""
    numbers = [str(number) for number in range(pictures)]
    return ["real", *numbers[:-1]] if cache.has_real else numbers
