"""Looking inside a cache (data/views, data/genhead, data/ingest): what is in it, how good it is, from where its heads are seen."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.caches.kinds import GENHEAD, INGEST, VIEWS, Layout, describe, layout_of
from pipeline.core.errors import UserError
from pipeline.store.shards import ShardReader, decode_npy, decode_png
from pipeline.store.view_index import QUALITY, ViewIndex

QUANTILES = {"least": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "most": 1.0}
ANGLES = ("yaw °", "pitch °", "radius")


@dataclass(frozen=True)
class Entry:
    """A sample as its table lists it. `clip` is the name of the shard where there are no clips (portraits, synthetic heads)."""

    key: str
    clip: str
    index: int
    split: str
    quality: dict[str, float] = field(default_factory=dict)
    kept: bool = True  # for training


class IndexedShards:
    """The shards of a multi-view cache by its index, which knows all that their sidecars know: of a folder or an address."""

    def __init__(self, index: ViewIndex):
        self._index = index
        table = index.columns(["key", "shard", "size"])
        self._frames = {key: frame for frame, key in enumerate(table["key"].to_pylist())}
        self._shards = table["shard"].to_pylist()
        sums = table.group_by("shard").aggregate([("size", "sum")]).to_pylist()
        self.sizes: dict[str, int] = {row["shard"]: row["size_sum"] for row in sums}

    def shard(self, key: str) -> str:
        return self._shards[self._frames[key]]

    def fields(self, key: str) -> list[str]:
        return self._index.fields

    def read(self, key: str, field: str | None = None) -> Any:
        found = self._index.read(self._frames[key], [field] if field else self._index.fields)
        return found[field] if field else found

    @cached_property
    def _cameras(self) -> np.ndarray:
        return (
            pc.list_flatten(self._index.columns(["cameras"])["cameras"])
            .to_numpy()
            .reshape(len(self._frames), -1, 25)
        )

    def cameras(self, key: str) -> np.ndarray:
        return self._cameras[self._frames[key]]


class Cache:
    """A cache opened for reading: its entries, what was rejected and why, and its samples. Raises UserError when it is none or damaged."""

    def __init__(self, folder: str | Path):
        """A folder or, for a multi-view cache, whatever fsspec knows, such as http://host/views."""
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
        self.reader = ShardReader(Path(folder) / "shards")
        self.entries = self._heads() if self.layout is GENHEAD else self._faces()

    def _views(self, index: ViewIndex) -> list[Entry]:
        rows = index.columns(["key", "clip", "index", "split", *QUALITY, "kept", "reason"]).to_pylist()
        if isinstance(self.folder, Path) and (ingested := self.folder.parent / "ingest").is_dir():
            rendered = {row["key"] for row in rows}
            for row in _table(ingested, "frames.parquet", ["key", "status", "reason"]).to_pylist():
                if row["key"] not in rendered:  # what was rejected before rendering is listed there alone
                    self.rejected["no fitted head" if row["status"] == "ok" else _kind(row["reason"])] += 1
        self.rejected.update(f"not trained on, low {row['reason']}" for row in rows if not row["kept"])
        place = ("key", "clip", "index", "split")
        return [
            Entry(*(row[name] for name in place), {name: row[name] for name in QUALITY}, row["kept"])
            for row in rows
        ]

    def _heads(self) -> list[Entry]:
        return [
            Entry(key, self.reader.shard(key).removesuffix(".tar"), int(key.rpartition("-")[2]), "train")
            for key in self.reader
        ]

    def _faces(self) -> list[Entry]:
        entries = []
        columns = ["key", "status", "reason", "shard", "score"]
        portraits = _table(self.folder, "portraits.parquet", columns).to_pylist()
        frames = _table(self.folder, "frames.parquet", [*columns, "clip", "index", "split"]).to_pylist()
        for index, row in enumerate(portraits):
            if row["status"] == "ok":
                entries.append(
                    Entry(
                        row["key"],
                        row["shard"].removesuffix(".tar"),
                        index,
                        "portrait",
                        {"score": row["score"]},
                    )
                )
        for row in frames:
            if row["status"] == "ok":
                entries.append(
                    Entry(row["key"], row["clip"], row["index"], row["split"], {"score": row["score"]})
                )
        self.rejected.update(_kind(row["reason"]) for row in portraits + frames if row["status"] != "ok")
        return entries

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
        if not found:
            clips = sorted({entry.clip for entry in self.entries})
            some = ", ".join(clips[:4]) + (" ..." if len(clips) > 4 else "")
            what = " ".join(
                f"{name} {value}" for name, value in (("clip", clip), ("frame", frame)) if value is not None
            )
            raise UserError(
                f"{self.folder} has no {what}. Its {len(clips)} clips: {some}; `psi4d inspect {self.folder} --clip NAME` lists frames."
            )
        return found

    def cameras(self, key: str) -> np.ndarray:
        """The cameras of a sample (N, 25), none (0, 25) where there are no cameras."""
        if self.layout is INGEST:
            return np.zeros((0, 25), np.float32)
        if isinstance(self.reader, IndexedShards):
            return self.reader.cameras(key)
        return decode_npy(self.reader.read(key, "cameras.npy"))

    def views(self, key: str) -> list[np.ndarray]:
        """The pictures (S, S, 3) of a sample in the order of its cameras: first the real frame if there is one, then the pseudo views."""
        names = [name for name in self.reader.fields(key) if name.startswith("view")]
        names.sort(key=lambda name: int(name[4:].split(".")[0]))
        return [
            decode_png(self.reader.read(key, name))
            for name in [*(["image.png"] if self.has_real else []), *names]
        ]

    def mask(self, key: str) -> np.ndarray:
        """The mask of the real frame, or the opacity of the first view of a synthetic head: (n, n) uint8."""
        grey = decode_png(self.reader.read(key, "mask.png" if self.has_real else "opacity.png"))
        return grey[: grey.shape[1]]


def _table(folder: Path, name: str, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(folder / name, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{folder / name} is missing or damaged. `psi4d verify {folder}` says what is wrong."
        ) from error


def _kind(reason: str) -> str:
    return reason.split(":")[0]


def angles(cameras_N25: np.ndarray) -> np.ndarray:
    """Yaw and pitch in degrees and radius in world units (N, 3) of the cameras' places around the world origin (as `camera.look_at` has them)."""
    x, y, z = np.asarray(cameras_N25, np.float64)[:, [3, 7, 11]].T
    radius = np.sqrt(x * x + y * y + z * z)
    return np.stack([np.degrees(np.arctan2(-x, z)), np.degrees(np.arcsin(y / radius)), radius], axis=1)


def summary(cache: Cache) -> str:
    """What `psi4d inspect DIR` prints."""
    sizes = cache.reader.sizes
    lines = [
        f"{cache.folder}: {cache.layout.name}, {len(cache.entries):,} samples in {len(sizes)} shards, {sum(sizes.values()):,} bytes"
    ]
    cameras = {entry.key: cache.cameras(entry.key) for entry in cache.entries}
    rows = []
    for split in [*sorted({entry.split for entry in cache.entries}, reverse=True), "all"]:
        members = [entry for entry in cache.entries if split in ("all", entry.split)]
        views = sum(max(len(cameras[entry.key]) - cache.has_real, 0) for entry in members)
        clips = {entry.clip for entry in members if f"{entry.clip}.tar" not in sizes}
        numbers = [
            len(clips),
            len(members),
            views,
            *([sum(entry.kept for entry in members)] if cache.layout is VIEWS else []),
        ]
        rows.append([split, *(f"{number:,}" for number in numbers)])
    lines += ["", *text_table(["", "clips", "frames", "views", "kept"][: len(rows[0])], rows)]
    if cache.rejected:
        lines += [
            "",
            *text_table(
                ["rejected", ""], [[reason, f"{count:,}"] for reason, count in cache.rejected.most_common()]
            ),
        ]
    measured = {name: np.array([entry.quality[name] for entry in cache.entries]) for name in cache.qualities}
    lines += ["", *_quantiles("quality", measured)] if measured else []
    seen = (
        {"real": [c[:1] for c in cameras.values()], "pseudo": [c[1:] for c in cameras.values()]}
        if cache.has_real
        else {"view": cameras.values()}
    )
    found = {name: angles(np.concatenate(list(values))) for name, values in seen.items() if cameras}
    directions = {
        f"{name} {what}": values[:, i]
        for name, values in found.items()
        for i, what in enumerate(ANGLES)
        if len(values)
    }
    lines += ["", *_quantiles("cameras", directions)] if directions else []
    return "\n".join(lines)


def frames_of(cache: Cache, entries: Sequence[Entry]) -> str:
    """A line for every entry: what `--clip` prints."""
    gated = cache.layout is VIEWS
    rows = [
        [
            entry.key,
            str(entry.index),
            entry.split,
            cache.reader.shard(entry.key),
            *(f"{value:.4g}" for value in entry.quality.values()),
        ]
        + (["yes" if entry.kept else "no"] if gated else [])
        for entry in entries
    ]
    return "\n".join(
        text_table(["key", "frame", "split", "shard", *cache.qualities, *(["kept"] if gated else [])], rows)
    )


def sample(cache: Cache, entry: Entry) -> str:
    """A sample with all its fields and directions: what `--clip --frame` prints."""
    rows = []
    for name, data in cache.reader.read(entry.key).items():
        found = describe(name, data)
        rows.append([name, found.type, " x ".join(map(str, found.shape)), f"{len(data):,}"])
    lines = [frames_of(cache, [entry]), "", *text_table(["field", "type", "shape", "bytes"], rows)]
    if len(cameras := cache.cameras(entry.key)):
        directions = zip(view_names(cache, len(cameras)), angles(cameras), strict=True)
        lines += [
            "",
            *text_table(
                ["camera", *ANGLES], [[name, *(f"{value:.2f}" for value in row)] for name, row in directions]
            ),
        ]
    return "\n".join(lines)


def view_names(cache: Cache, pictures: int) -> list[str]:
    """What the first `pictures` of `Cache.views` are called: real, 0, 1 and so on."""
    return ["real", *map(str, range(pictures - 1))] if cache.has_real else list(map(str, range(pictures)))


def _quantiles(title: str, values: dict[str, np.ndarray]) -> list[str]:
    levels = list(QUANTILES.values())
    return text_table(
        [title, *QUANTILES],
        [
            [name, *(f"{number:.4g}" for number in np.quantile(found, levels))]
            for name, found in values.items()
        ],
    )


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text in columns; the first is set to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    ]
