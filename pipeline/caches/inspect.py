"""What is in a cache (data/views, data/genhead, data/ingest), how good it is, from where heads are seen."""

from collections.abc import Sequence

import numpy as np

from pipeline.caches.cache import Cache, Entry, angles, view_names
from pipeline.caches.kinds import VIEWS, describe

QUANTILES = {
    "least": 0.0,
    "5 %": 0.05,
    "25 %": 0.25,
    "median": 0.5,
    "75 %": 0.75,
    "95 %": 0.95,
    "most": 1.0,
}
ANGLES = ("yaw °", "pitch °", "radius")


def summary(cache: Cache) -> str:
    """What `psi4d inspect DIR` prints."""
    sizes = cache.reader.sizes
    samples = len(cache.entries)
    size = sum(sizes.values())
    what = f"{cache.folder}: {cache.layout.name}"
    lines = [f"{what}, {samples:,} samples in {len(sizes)} shards, {size:,} bytes"]
    cameras = {entry.key: cache.cameras(entry.key) for entry in cache.entries}
    lines += ["", *_counts(cache, cameras)]
    if cache.rejected:
        rows = []
        for reason, count in cache.rejected.most_common():
            rows.append([reason, f"{count:,}"])
        lines += ["", *text_table(["rejected", ""], rows)]
    if cache.qualities:
        measured = {}
        for name in cache.qualities:
            values = [entry.quality[name] for entry in cache.entries]
            measured[name] = np.array(values)
        lines += ["", *_quantiles("quality", measured)]
    if directions := _directions(cache, list(cameras.values())):
        lines += ["", *_quantiles("cameras", directions)]
    return "\n".join(lines)


def _counts(cache: Cache, cameras: dict[str, np.ndarray]) -> list[str]:
    """A table of clips, frames and views of each split."""
    header = ["", "clips", "frames", "views"]
    if cache.layout is VIEWS:
        header.append("kept")
    splits = sorted({entry.split for entry in cache.entries}, reverse=True)
    # Portraits and heads have the name of their shard for a clip, which is not counted as one.
    shards = {name.removesuffix(".tar") for name in cache.reader.sizes}
    rows = []
    for split in [*splits, "all"]:
        members = [entry for entry in cache.entries if split in ("all", entry.split)]
        clips = {entry.clip for entry in members} - shards
        # The first camera belongs to the real frame where there is one.
        seen = [len(cameras[entry.key]) - cache.has_real for entry in members]
        views = sum(max(count, 0) for count in seen)
        kept = sum(entry.kept for entry in members)
        numbers = [len(clips), len(members), views, kept]
        cells = [f"{number:,}" for number in numbers]
        rows.append([split, *cells][: len(header)])
    return text_table(header, rows)


def _directions(
    cache: Cache,
    cameras: list[np.ndarray],
) -> dict[str, np.ndarray]:
    """Yaw, pitch and radius of all cameras, those of real frames and of pseudo views apart."""
    if not cameras:
        return {}
    # Cameras of real frames are fitted and those of pseudo views drawn, so their spreads are told apart.
    seen = {"view": np.concatenate(cameras)}
    if cache.has_real:
        seen = {
            "real": np.concatenate([each[:1] for each in cameras]),
            "pseudo": np.concatenate([each[1:] for each in cameras]),
        }
    directions = {}
    for name, cameras_N25 in seen.items():
        if not len(cameras_N25):
            continue
        for what, values in zip(ANGLES, angles(cameras_N25).T, strict=True):
            directions[f"{name} {what}"] = values
    return directions


def frames_of(cache: Cache, entries: Sequence[Entry]) -> str:
    """A line for every entry: what `--clip` prints."""
    gated = cache.layout is VIEWS
    header = ["key", "frame", "split", "shard", *cache.qualities]
    if gated:
        header.append("kept")
    rows = []
    for entry in entries:
        shard = cache.reader.shard(entry.key)
        row = [entry.key, str(entry.index), entry.split, shard]
        row += [f"{value:.4g}" for value in entry.quality.values()]
        if gated:
            row.append("yes" if entry.kept else "no")
        rows.append(row)
    return "\n".join(text_table(header, rows))


def sample(cache: Cache, entry: Entry) -> str:
    """A sample with all its fields and directions: what `--clip --frame` prints."""
    rows = []
    for name, data in cache.reader.read(entry.key).items():
        found = describe(name, data)
        shape = " x ".join(map(str, found.shape))
        rows.append([name, found.type, shape, f"{len(data):,}"])
    fields = text_table(["field", "type", "shape", "bytes"], rows)
    lines = [frames_of(cache, [entry]), "", *fields]
    cameras = cache.cameras(entry.key)
    if len(cameras):
        rows = []
        names = view_names(cache, len(cameras))
        for name, direction in zip(names, angles(cameras), strict=True):
            cells = [f"{value:.2f}" for value in direction]
            rows.append([name, *cells])
        lines += ["", *text_table(["camera", *ANGLES], rows)]
    return "\n".join(lines)


def _quantiles(title: str, values: dict[str, np.ndarray]) -> list[str]:
    levels = list(QUANTILES.values())
    rows = []
    for name, found in values.items():
        cells = [f"{number:.4g}" for number in np.quantile(found, levels)]
        rows.append([name, *cells])
    return text_table([title, *QUANTILES], rows)


def text_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> list[str]:
    """Lines of text in columns; the first is set to the left, the others to the right."""
    # Numbers stand right-aligned below each other; the first column names its row.
    columns = []
    for number, column in enumerate(zip(header, *rows, strict=True)):
        width = max(len(cell) for cell in column)
        side = "<" if number == 0 else ">"
        columns.append([f"{cell:{side}{width}}" for cell in column])
    lines = ["  ".join(cells) for cells in zip(*columns, strict=True)]
    return [line.rstrip() for line in lines]
