"""A cache opened for reading: its entries, what was rejected and why, pictures and cameras of its samples."""

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
        keys = table["key"].to_pylist()
        self._frames = {key: frame for frame, key in enumerate(keys)}
        self._shards = table["shard"].to_pylist()
        self.sizes: dict[str, int] = {}
        sums = table.group_by("shard").aggregate([("size", "sum")])
        for row in sums.to_pylist():
            self.sizes[row["shard"]] = row["size_sum"]

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

    # One column for all samples: the summary asks for each of them.
    @cached_property
    def _cameras(self) -> np.ndarray:
        return self._index.cameras()

    def cameras(self, key: str) -> np.ndarray:
        """The cameras (1 + N, 25) of a sample."""
        return self._cameras[self._frames[key]]


class Cache:
    """A cache opened for reading."""

    def __init__(self, folder: str | Path):
        """Open a folder or, for a multi-view cache, whatever fsspec knows, such as http://host/views.

        Raises UserError when it is no cache, damaged or of another format.
        """
        # Behind an address only a multi-view cache can be read: its index tells where everything is.
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
        if self.layout is GENHEAD:
            self.entries = self._heads(self.reader)
        else:
            self.entries = self._faces(Path(folder))

    def _views(self, index: ViewIndex) -> list[Entry]:
        columns = ["key", "clip", "index", "split", *QUALITY, "kept", "reason"]
        rows = index.columns(columns).to_pylist()
        # What was rejected before rendering is listed in the tables of ingest alone.
        if isinstance(self.folder, Path):
            rendered = {row["key"] for row in rows}
            self._count_unrendered(self.folder.parent / "ingest", rendered)
        entries = []
        for row in rows:
            if not row["kept"]:
                self.rejected[f"not trained on, low {row['reason']}"] += 1
            entry = Entry(
                key=row["key"],
                clip=row["clip"],
                index=row["index"],
                split=row["split"],
                quality={name: row[name] for name in QUALITY},
                kept=row["kept"],
            )
            entries.append(entry)
        return entries

    def _count_unrendered(self, ingested: Path, rendered: set[str]) -> None:
        """Count the frames of ingest that are not among those of the cache, by their reasons."""
        if not ingested.is_dir():
            return
        for row in self._rows(ingested, "frames", ["key", "status", "reason"]):
            if row["key"] in rendered:
                continue
            reason = "no fitted head" if row["status"] == OK else _kind(row["reason"])
            self.rejected[reason] += 1

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
        # Portraits are in no clip; their shard and their number in the table stand for clip and frame.
        for number, row in enumerate(portraits):
            shard = Path(row["shard"] or "").stem
            row.update(clip=shard, index=number, split="portrait")
        entries = []
        for row in usable(portraits + frames):
            entry = Entry(
                key=row["key"],
                clip=row["clip"],
                index=row["index"],
                split=row["split"],
                quality={"score": row["score"]},
            )
            entries.append(entry)
        return entries

    @staticmethod
    def _rows(
        folder: Path,
        name: str,
        columns: list[str],
    ) -> list[dict[str, Any]]:
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
        # Portraits and heads are in no clip, so that a key is taken for one as well.
        found = self.entries
        if clip is not None:
            found = [entry for entry in found if clip in (entry.clip, entry.key)]
        if frame is not None:
            found = [entry for entry in found if entry.index == frame]
        if found:
            return found
        asked = [f"clip {clip}"] if clip is not None else []
        asked += [f"frame {frame}"] if frame is not None else []
        clips = sorted({entry.clip for entry in self.entries})
        some = ", ".join(clips[:SHOWN])
        more = " ..." if len(clips) > SHOWN else ""
        what = " ".join(asked)
        raise UserError(
            f"{self.folder} has no {what}. Its {len(clips)} clips: {some}{more}; "
            f"`psi4d inspect {self.folder} --clip NAME` lists frames."
        )

    def cameras(self, key: str) -> np.ndarray:
        """The cameras of a sample (N, 25), none (0, 25) where there are no cameras."""
        # Ingest comes before the fit, which finds the cameras.
        if self.layout is INGEST:
            return np.zeros((0, CAMERA), np.float32)
        if isinstance(self.reader, IndexedShards):
            return self.reader.cameras(key)
        return Heads.cameras.array(self.reader[key])

    def views(self, key: str) -> list[np.ndarray]:
        """The pictures (S, S, 3) of a sample in the order of its cameras, a real frame first."""
        sample = self.reader[key]
        pictures = [Aligned.image.array(sample)] if self.has_real else []
        names = self.reader.fields(key)
        count = sum(name.startswith("view") for name in names)
        field = Heads.view if self.layout is GENHEAD else Views.view
        return pictures + [field.array(sample, number) for number in range(count)]

    def mask(self, key: str) -> np.ndarray:
        """The mask of the real frame, or the opacity of the first view of a synthetic head: (n, n) uint8."""
        sample = self.reader[key]
        if self.has_real:
            return Aligned.mask.array(sample)
        # The views lie below one another, each as high as it is wide.
        opacities = Heads.opacity.array(sample)
        return opacities[: opacities.shape[1]]


def _kind(reason: str) -> str:
    return reason.split(":")[0]


def angles(cameras_N25: np.ndarray) -> np.ndarray:
    """Yaw and pitch in degrees and radius in world units of cameras around the world origin, (N, 3) float64.

    They are those of `camera.look_at`.
    """
    # The last column of the camera-to-world matrix is where the camera is.
    places_N3 = np.asarray(cameras_N25, np.float64)[:, [3, 7, 11]]
    x, y, z = places_N3.T
    radius = np.linalg.norm(places_N3, axis=1)
    yaw = np.degrees(np.arctan2(-x, z))
    pitch = np.degrees(np.arcsin(y / radius))
    return np.stack([yaw, pitch, radius], axis=1)


def view_names(cache: Cache, pictures: int) -> list[str]:
    """What the first `pictures` of `Cache.views` are called: real, 0, 1 and so on."""
    numbers = [str(number) for number in range(pictures)]
    return ["real", *numbers[:-1]] if cache.has_real else numbers
