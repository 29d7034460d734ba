"""A page to browse a cache: one HTML file with all numbers and, beside it, a few JPEG sheets per clip that are loaded when they are shown."""

import html
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.caches.inspect import Cache, Entry, angles, view_names
from pipeline.core.files import write_bytes
from pipeline.core.pictures import encode_jpeg
from pipeline.core.progress import progress

TILE = 128  # pixels at most
FRAMES_PER_SHEET = 50  # 6400 pixels high at most, which every browser decodes
TEMPLATE = Path(__file__).with_name("page.html")


def write_page(cache: Cache, entries: Sequence[Entry], out: Path) -> Path:
    """Write the page to `out` (a folder, or the name of an .html file) with its sheets in a folder beside it; returns the page."""
    page = out if out.suffix == ".html" else out / "index.html"
    sheets = page.with_name(f"{page.stem}-sheets")
    clips = [
        (name, list(members))
        for name, members in groupby(sorted(entries, key=_place), key=lambda entry: entry.clip)
    ]
    names: list[str] = []
    listed = []
    for number, (name, members) in enumerate(progress(clips, label="page", total=len(clips))):
        files = []
        for start in range(0, len(members), FRAMES_PER_SHEET):
            part = members[start : start + FRAMES_PER_SHEET]
            rows = [_tiles(cache, entry) for entry in part]
            names = view_names(cache, len(rows[0]) - 1)
            path = sheets / f"{number:05d}-{start // FRAMES_PER_SHEET:03d}.jpg"
            write_bytes(path, encode_jpeg(np.concatenate([np.concatenate(row, axis=1) for row in rows])))
            files.append(f"{sheets.name}/{path.name}")
        listed.append(
            {
                "name": name,
                "split": members[0].split,
                "sheets": files,
                "frames": [_numbers(cache, entry) for entry in members],
            }
        )
    content = {
        "title": f"{cache.folder}: {cache.layout.name}",
        "qualities": cache.qualities,
        "pictures": [*names, "mask" if cache.has_real else "opacity 0"],
        "framesPerSheet": FRAMES_PER_SHEET,
        "clips": listed,
    }
    text = json.dumps(content, separators=(",", ":")).replace(
        "<", "\\u003c"
    )  # so that no name can end the script
    template = TEMPLATE.read_text(encoding="utf-8").replace("{{title}}", html.escape(content["title"]))
    return write_bytes(page, template.replace("{{content}}", text).encode())


def _place(entry: Entry) -> tuple[str, int]:
    return entry.clip, entry.index


def _tiles(cache: Cache, entry: Entry) -> list[np.ndarray]:
    """The views and then the mask, all of one size."""
    views = cache.views(entry.key)
    side = min(views[0].shape[0], TILE)
    return [
        cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA)
        for tile in (*views, cv2.cvtColor(cache.mask(entry.key), cv2.COLOR_GRAY2RGB))
    ]


def _numbers(cache: Cache, entry: Entry) -> dict[str, Any]:
    directions = angles(cache.cameras(entry.key)).round(2).tolist()
    return {
        "key": entry.key,
        "index": entry.index,
        "quality": [round(value, 4) for value in entry.quality.values()],
        "cameras": directions,
    }
