"""Texts about a cache (data/views, data/genhead, data/ingest).

They say what is in it, how good it is, and from where its heads are seen.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.caches.cache import Cache, Entry, angles, view_names
from pipeline.caches.kinds import VIEWS, describe

QUANTILES = {"least": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "most": 1.0}
ANGLES = ("yaw °", "pitch °", "radius")


def summary(cache: Cache) -> str:
    """What `psi4d inspect DIR` prints."""
    sizes = cache.reader.sizes
    size = f"{len(cache.entries):,} samples in {len(sizes)} shards, {sum(sizes.values()):,} bytes"
    lines = [f"{cache.folder}: {cache.layout.name}, {size}"]
    cameras = {entry.key: cache.cameras(entry.key) for entry in cache.entries}
    lines += ["", *_counts(cache, cameras)]
    if cache.rejected:
        reasons = [[reason, f"{count:,}"] for reason, count in cache.rejected.most_common()]
        lines += ["", *text_table(["rejected", ""], reasons)]
    if cache.qualities:
        measured = {
            name: np.array([entry.quality[name] for entry in cache.entries]) for name in cache.qualities
        }
        lines += ["", *_quantiles("quality", measured)]
    if directions := _directions(cache, list(cameras.values())):
        lines += ["", *_quantiles("cameras", directions)]
    return "\n".join(lines)


def _counts(cache: Cache, cameras: dict[str, np.ndarray]) -> list[str]:
    """A table of clips, frames and views of each split."""
    header = ["", "clips", "frames", "views"] + (["kept"] if cache.layout is VIEWS else [])
    splits = sorted({entry.split for entry in cache.entries}, reverse=True)
    rows = []
    for split in [*splits, "all"]:
        members = [entry for entry in cache.entries if split in ("all", entry.split)]
        clips = {entry.clip for entry in members if f"{entry.clip}.tar" not in cache.reader.sizes}
        views = sum(max(len(cameras[entry.key]) - cache.has_real, 0) for entry in members)
        numbers = [len(clips), len(members), views, sum(entry.kept for entry in members)]
        cells = [f"{number:,}" for number in numbers]
        rows.append([split, *cells][: len(header)])
    return text_table(header, rows)


def _directions(cache: Cache, cameras: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Yaw, pitch and radius of all cameras, those of real frames and of pseudo views apart."""
    if not cameras:
        return {}
    seen = {"view": np.concatenate(cameras)}
    if cache.has_real:
        seen = {
            "real": np.concatenate([each[:1] for each in cameras]),
            "pseudo": np.concatenate([each[1:] for each in cameras]),
        }
    directions = {}
    for name, cameras_N25 in seen.items():
        if len(cameras_N25):
            for what, values in zip(ANGLES, angles(cameras_N25).T, strict=True):
                directions[f"{name} {what}"] = values
    return directions


def frames_of(cache: Cache, entries: Sequence[Entry]) -> str:
    """A line for every entry: what `--clip` prints."""
    gated = cache.layout is VIEWS
    header = ["key", "frame", "split", "shard", *cache.qualities] + (["kept"] if gated else [])
    rows = []
    for entry in entries:
        quality = [f"{value:.4g}" for value in entry.quality.values()]
        row = [entry.key, str(entry.index), entry.split, cache.reader.shard(entry.key), *quality]
        if gated:
            row.append("yes" if entry.kept else "no")
        rows.append(row)
    return "\n".join(text_table(header, rows))


def sample(cache: Cache, entry: Entry) -> str:
    """A sample with all its fields and directions: what `--clip --frame` prints."""
    rows = []
    for name, data in cache.reader.read(entry.key).items():
        found = describe(name, data)
        rows.append([name, found.type, " x ".join(map(str, found.shape)), f"{len(data):,}"])
    lines = [frames_of(cache, [entry]), "", *text_table(["field", "type", "shape", "bytes"], rows)]
    cameras = cache.cameras(entry.key)
    if len(cameras):
        rows = []
        for name, direction in zip(view_names(cache, len(cameras)), angles(cameras), strict=True):
            rows.append([name, *(f"{value:.2f}" for value in direction)])
        lines += ["", *text_table(["camera", *ANGLES], rows)]
    return "\n".join(lines)


def _quantiles(title: str, values: dict[str, np.ndarray]) -> list[str]:
    levels = list(QUANTILES.values())
    rows = []
    for name, found in values.items():
        rows.append([name, *(f"{number:.4g}" for number in np.quantile(found, levels))])
    return text_table([title, *QUANTILES], rows)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text in columns; the first is set to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for first, *others in [header, *rows]:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines
