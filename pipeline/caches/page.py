"""A page to browse a cache: one HTML file with all numbers; its JPEG sheets are loaded when shown."""

from collections.abc import Collection, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.caches.cache import Cache, Entry, angles, view_names
from pipeline.caches.kinds import VIEWS
from pipeline.core.files import write_bytes
from pipeline.core.pages import fill_in
from pipeline.core.pictures import below, beside, encode_jpeg, tile
from pipeline.core.progress import progress

# Pixels of the side of a picture, at most.
TILE = 128
# A sheet is then 6400 pixels high at most, which every browser decodes.
FRAMES_PER_SHEET = 50
TEMPLATE = Path(__file__).with_name("page.html.j2")


def write_page(
    cache: Cache,
    entries: Sequence[Entry],
    out: Path,
    bad: Collection[str] = (),
) -> Path:
    """Write the page to `out` (a folder, or the name of an .html file); returns the page.

    Its sheets go into a folder beside it. Frames of clips can be marked as bad on it and saved as a table
    (pipeline/core/bad_frames.py); those with the keys in `bad` are marked from the beginning.
    """
    path = out if out.suffix == ".html" else out / "index.html"
    sheets = path.with_name(f"{path.stem}-sheets")
    ordered = sorted(entries, key=_place)
    clips = [list(members) for _, members in groupby(ordered, key=lambda entry: entry.clip)]
    listed = []
    for number, members in enumerate(progress(clips, label="page", total=len(clips))):
        files = _write_sheets(cache, members, sheets, number)
        listed.append(
            {
                "name": members[0].clip,
                "split": members[0].split,
                "sheets": [f"{sheets.name}/{file}" for file in files],
                "frames": [_numbers(cache, entry) for entry in members],
            }
        )
    # All samples of a cache have as many views, so that the first one names them.
    names = view_names(cache, len(cache.views(ordered[0].key))) if ordered else []
    content = {
        "qualities": cache.qualities,
        "pictures": [*names, "mask" if cache.has_real else "opacity 0"],
        "framesPerSheet": FRAMES_PER_SHEET,
        "bad": sorted(bad),
        "marks": cache.layout is VIEWS,
        "clips": listed,
    }
    page = fill_in(TEMPLATE, title=f"{cache.folder}: {cache.layout.name}", content=content)
    return write_bytes(path, page.encode())


def _place(entry: Entry) -> tuple[str, int]:
    return entry.clip, entry.index


def _write_sheets(
    cache: Cache,
    entries: Sequence[Entry],
    folder: Path,
    clip: int,
) -> list[str]:
    """Write the pictures of a clip, a row a frame; returns the names of the files."""
    names = []
    for part, start in enumerate(range(0, len(entries), FRAMES_PER_SHEET)):
        shown = entries[start : start + FRAMES_PER_SHEET]
        sheet = below([beside(_tiles(cache, entry)) for entry in shown])
        name = f"{clip:05d}-{part:03d}.jpg"
        write_bytes(folder / name, encode_jpeg(sheet))
        names.append(name)
    return names


def _tiles(cache: Cache, entry: Entry) -> list[np.ndarray]:
    """The views and then the mask, all of one size."""
    mask = cv2.cvtColor(cache.mask(entry.key), cv2.COLOR_GRAY2RGB)
    pictures = [*cache.views(entry.key), mask]
    side = min(pictures[0].shape[0], TILE)
    # A mask may be smaller than the views: its pixels stay sharp.
    return [tile(picture, side, cv2.INTER_NEAREST) for picture in pictures]


def _numbers(cache: Cache, entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "index": entry.index,
        "quality": [round(value, 4) for value in entry.quality.values()],
        "cameras": angles(cache.cameras(entry.key)).round(2).tolist(),
    }
