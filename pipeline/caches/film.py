"""A clip of a cache as a film: every frame with its views next to it, as fast as the clip was taken."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from pipeline.caches.cache import Cache, Entry, view_names
from pipeline.caches.kinds import GENHEAD, INGEST
from pipeline.clips.times import clip_times
from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes
from pipeline.core.films import encode_mp4
from pipeline.core.pictures import beside, tile
from pipeline.core.progress import progress

# Pixels of the side of a picture.
TILE = 128


def write_film(cache: Cache, entries: Sequence[Entry], out: Path) -> int:
    """Write the MP4 `out` of the entries of one clip; returns the number of frames.

    Raises UserError for another name, for several clips or none, and when it is not known when frames were
    taken or the place cannot be written.
    """
    if out.suffix.lower() != ".mp4":
        raise UserError(f"{out}: a film is an MP4; name it {out.with_suffix('.mp4')}.")
    clips = {entry.clip for entry in entries}
    if cache.layout is GENHEAD or len(clips) != 1 or entries[0].split == "portrait":
        raise UserError(
            f"--film shows one clip: psi4d inspect {cache.folder} --clip NAME --film {out}. "
            "Portraits and synthetic heads are in no clip; --sheet and --html show them."
        )
    if not isinstance(cache.folder, Path):
        raise UserError(f"--film needs the tables of ingest beside {cache.folder}: copy both to a folder.")
    ingest = cache.folder if cache.layout is INGEST else cache.folder.parent / "ingest"
    ordered = sorted(entries, key=lambda entry: entry.index)
    rate, seconds = clip_times(ingest, ordered[0].clip, [entry.key for entry in ordered])
    shown = progress(_rows(cache, ordered), label="film", total=len(ordered), unit="frames")
    write_bytes(out, encode_mp4(shown, rate, seconds))
    return len(ordered)


def _rows(cache: Cache, entries: Sequence[Entry]) -> Iterator[np.ndarray]:
    """The pictures of each entry side by side, the first below the number of its frame."""
    for entry in entries:
        views = cache.views(entry.key)
        names = [f"view {name}" for name in view_names(cache, len(views))[1:]]
        tiles = [tile(view, TILE, cv2.INTER_NEAREST) for view in views]
        yield beside(tiles, [f"frame {entry.index}", *names])
