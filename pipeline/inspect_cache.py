"""Looking inside a cache (data/views, data/genhead, data/ingest): what is in it, how good it is, from where its heads are seen."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cache_layout import GENHEAD, INGEST, VIEWS, Layout, describe, layout_of
from pipeline.errors import UserError
from pipeline.shards import ShardReader, decode_npy, decode_png

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


class Cache:
    """A folder opened for reading: its entries, what was rejected and why, and its samples. Raises UserError when it is none or damaged."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.layout: Layout = layout_of(folder)
        self.reader = ShardReader(folder / "shards")
        self.rejected: Counter[str] = Counter()
        self.entries = {VIEWS.name: self._views, GENHEAD.name: self._heads, INGEST.name: self._faces}[self.layout.name]()

    def _views(self) -> list[Entry]:
        table = _table(self.folder, "index.parquet")
        numbers = [column.name for column in table.schema if pa.types.is_floating(column.type)]
        rows = table.to_pylist()
        ingested = self.folder.parent / "ingest"
        if ingested.is_dir():  # what was rejected before rendering is listed there alone
            rendered = {row["key"] for row in rows}
            for row in _table(ingested, "frames.parquet", ["key", "status", "reason"]).to_pylist():
                if row["key"] not in rendered:
                    self.rejected["no fitted head" if row["status"] == "ok" else _kind(row["reason"])] += 1
        return [Entry(row["key"], row["clip"], row["index"], row["split"], {name: row[name] for name in numbers}) for row in rows]

    def _heads(self) -> list[Entry]:
        return [Entry(key, self.reader.shard(key).removesuffix(".tar"), int(key.rpartition("-")[2]), "train") for key in self.reader]

    def _faces(self) -> list[Entry]:
        entries = []
        columns = ["key", "status", "reason", "shard", "score"]
        portraits = _table(self.folder, "portraits.parquet", columns).to_pylist()
        frames = _table(self.folder, "frames.parquet", [*columns, "clip", "index", "split"]).to_pylist()
        for index, row in enumerate(portraits):
            if row["status"] == "ok":
                entries.append(Entry(row["key"], row["shard"].removesuffix(".tar"), index, "portrait", {"score": row["score"]}))
        for row in frames:
            if row["status"] == "ok":
                entries.append(Entry(row["key"], row["clip"], row["index"], row["split"], {"score": row["score"]}))
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
        found = [entry for entry in self.entries if clip in (None, entry.clip, entry.key) and frame in (None, entry.index)]
        if not found:
            clips = sorted({entry.clip for entry in self.entries})
            some = ", ".join(clips[:4]) + (" ..." if len(clips) > 4 else "")
            what = " ".join(f"{name} {value}" for name, value in (("clip", clip), ("frame", frame)) if value is not None)
            raise UserError(f"{self.folder} has no {what}. Its {len(clips)} clips: {some}; `psi4d inspect {self.folder} --clip NAME` lists frames.")
        return found

    def cameras(self, key: str) -> np.ndarray:
        """The cameras of a sample (N, 25), none (0, 25) where there are no cameras."""
        if self.layout is INGEST:
            return np.zeros((0, 25), np.float32)
        return decode_npy(self.reader.read(key, "cameras.npy"))

    def views(self, key: str) -> list[np.ndarray]:
        """The pictures (S, S, 3) of a sample in the order of its cameras: first the real frame if there is one, then the pseudo views."""
        names = [name for name in self.reader.fields(key) if name.startswith("view")]
        names.sort(key=lambda name: int(name[4:].split(".")[0]))
        return [decode_png(self.reader.read(key, name)) for name in [*(["image.png"] if self.has_real else []), *names]]

    def mask(self, key: str) -> np.ndarray:
        """The mask of the real frame, or the opacity of the first view of a synthetic head: (n, n) uint8."""
        grey = decode_png(self.reader.read(key, "mask.png" if self.has_real else "opacity.png"))
        return grey[: grey.shape[1]]


def _table(folder: Path, name: str, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(folder / name, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{folder / name} is missing or damaged. `psi4d verify {folder}` says what is wrong.") from error


def _kind(reason: str) -> str:
    return reason.split(":")[0]


def angles(cameras_N25: np.ndarray) -> np.ndarray:
    """Yaw and pitch in degrees and radius in world units (N, 3) of the cameras' places around the world origin (as `camera.look_at` has them)."""
    x, y, z = np.asarray(cameras_N25, np.float64)[:, [3, 7, 11]].T
    radius = np.sqrt(x * x + y * y + z * z)
    return np.stack([np.degrees(np.arctan2(-x, z)), np.degrees(np.arcsin(y / radius)), radius], axis=1)


def summary(cache: Cache) -> str:
    """What `psi4d inspect DIR` prints."""
    records = cache.reader.records.values()
    size = sum(record.bytes for record in records)
    lines = [f"{cache.folder}: {cache.layout.name}, {len(cache.entries):,} samples in {len(records)} shards, {size:,} bytes"]
    cameras = {entry.key: cache.cameras(entry.key) for entry in cache.entries}
    rows = []
    for split in [*sorted({entry.split for entry in cache.entries}, reverse=True), "all"]:
        members = [entry for entry in cache.entries if split in ("all", entry.split)]
        views = sum(max(len(cameras[entry.key]) - cache.has_real, 0) for entry in members)
        clips = {entry.clip for entry in members if f"{entry.clip}.tar" not in cache.reader.records}
        rows.append([split, f"{len(clips):,}", f"{len(members):,}", f"{views:,}"])
    lines += ["", *text_table(["", "clips", "frames", "views"], rows)]
    if cache.rejected:
        lines += ["", *text_table(["rejected", ""], [[reason, f"{count:,}"] for reason, count in cache.rejected.most_common()])]
    measured = {name: np.array([entry.quality[name] for entry in cache.entries]) for name in cache.qualities}
    lines += ["", *_quantiles("quality", measured)] if measured else []
    seen = {"real": [c[:1] for c in cameras.values()], "pseudo": [c[1:] for c in cameras.values()]} if cache.has_real else {"view": cameras.values()}
    found = {name: angles(np.concatenate(list(values))) for name, values in seen.items() if cameras}
    directions = {f"{name} {what}": values[:, i] for name, values in found.items() for i, what in enumerate(ANGLES) if len(values)}
    lines += ["", *_quantiles("cameras", directions)] if directions else []
    return "\n".join(lines)


def frames_of(cache: Cache, entries: Sequence[Entry]) -> str:
    """A line for every entry: what `--clip` prints."""
    rows = [
        [entry.key, str(entry.index), entry.split, cache.reader.shard(entry.key), *(f"{value:.4g}" for value in entry.quality.values())]
        for entry in entries
    ]
    return "\n".join(text_table(["key", "frame", "split", "shard", *cache.qualities], rows))


def sample(cache: Cache, entry: Entry) -> str:
    """A sample with all its fields and directions: what `--clip --frame` prints."""
    rows = []
    for name, data in cache.reader.read(entry.key).items():
        found = describe(name, data)
        rows.append([name, found.type, " x ".join(map(str, found.shape)), f"{len(data):,}"])
    lines = [frames_of(cache, [entry]), "", *text_table(["field", "type", "shape", "bytes"], rows)]
    if len(cameras := cache.cameras(entry.key)):
        directions = zip(view_names(cache, len(cameras)), angles(cameras), strict=True)
        lines += ["", *text_table(["camera", *ANGLES], [[name, *(f"{value:.2f}" for value in row)] for name, row in directions])]
    return "\n".join(lines)


def view_names(cache: Cache, pictures: int) -> list[str]:
    """What the first `pictures` of `Cache.views` are called: real, 0, 1 and so on."""
    return ["real", *map(str, range(pictures - 1))] if cache.has_real else list(map(str, range(pictures)))


def _quantiles(title: str, values: dict[str, np.ndarray]) -> list[str]:
    levels = list(QUANTILES.values())
    return text_table([title, *QUANTILES], [[name, *(f"{number:.4g}" for number in np.quantile(found, levels))] for name, found in values.items()])


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text in columns; the first is set to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in [header, *rows]
    ]
