"""A contact sheet of a cache: real frame, mask, views, and a rose that shows from where they see the head."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from pipeline.caches.cache import Cache, Entry, angles, view_names
from pipeline.core.files import write_bytes
from pipeline.core.pictures import below, beside, captioned, tile
from pipeline.store.codecs import PNG

TILE = 128  # pixels
ROWS = 8
FAINT = (190, 190, 190)
RIM = 60.0  # degrees from the front at the rim of the rose; the inner circle is half of it
REAL, PSEUDO = (200, 60, 40), (40, 90, 170)
FONT = cv2.FONT_HERSHEY_SIMPLEX


def write_sheet(cache: Cache, entries: Sequence[Entry], out: Path) -> int:
    """Write a PNG with a row for each of at most ROWS of the entries, evenly spread; returns how many."""
    # Neighbours in a clip look alike, so that rows are taken from all over it.
    count = min(ROWS, len(entries))
    places = np.linspace(0, len(entries) - 1, count)
    places = np.unique(places.round().astype(int))
    rows = [_row(cache, entries[place]) for place in places]
    write_bytes(out, PNG.encode(below(rows, gap=4)))
    return len(rows)


def _row(cache: Cache, entry: Entry) -> np.ndarray:
    views = cache.views(entry.key)
    names = view_names(cache, len(views))
    texts = [f"view {name}" if name.isdigit() else name for name in names]
    # The mask follows the picture that it belongs to.
    mask = cv2.cvtColor(cache.mask(entry.key), cv2.COLOR_GRAY2RGB)
    views.insert(1, mask)
    texts.insert(1, "mask" if cache.has_real else "opacity 0")
    tiles = [tile(view, TILE, cv2.INTER_NEAREST) for view in views]
    if len(cameras := cache.cameras(entry.key)):
        tiles.append(rose(angles(cameras), names, TILE))
        texts.append("seen from")
    numbers = [f"{name} {value:.4g}" for name, value in entry.quality.items()]
    title = "  ".join([entry.clip, f"frame {entry.index}", *numbers])
    return captioned(beside(tiles, texts), title)


def rose(angles_N3: np.ndarray, names: Sequence[str], size: int) -> np.ndarray:
    """The head from the front with a spoke to where each camera is, named: (size, size, 3) uint8.

    A camera right of the middle looks from the right of the picture; its distance from the middle is the
    angle to the front.
    """
    centre, radius = size // 2, int(size * 0.44)
    middle = (centre, centre)
    drawn = np.full((size, size, 3), 255, np.uint8)
    face = (size // 11, size // 9)
    cv2.ellipse(drawn, middle, face, 0, 0, 360, FAINT, 1, cv2.LINE_AA)
    nose = (centre, centre - 3), (centre, centre + 4)
    cv2.line(drawn, *nose, FAINT, 1, cv2.LINE_AA)
    for share in (0.5, 1.0):
        cv2.circle(drawn, middle, int(radius * share), FAINT, 1, cv2.LINE_AA)
    places = _in_rose(angles_N3) * radius + centre
    pixels = places.round().astype(int).tolist()
    for name, (x, y) in zip(names, pixels, strict=True):
        is_view = name.isdigit()
        colour = PSEUDO if is_view else REAL
        cv2.line(drawn, middle, (x, y), colour, 1, cv2.LINE_AA)
        cv2.circle(drawn, (x, y), 3, colour, -1, cv2.LINE_AA)
        text = name if is_view else name[0]
        cv2.putText(drawn, text, (x + 4, y - 4), FONT, 0.33, colour, 1, cv2.LINE_AA)
    return drawn


def _in_rose(angles_N3: np.ndarray) -> np.ndarray:
    """Where cameras lie in a rose of radius 1 about the origin, (N, 2), y down."""
    yaw, pitch = np.radians(angles_N3[:, :2]).T
    sideways = -np.sin(yaw) * np.cos(pitch)
    upwards = np.sin(pitch)
    forwards = np.cos(yaw) * np.cos(pitch)
    to_the_front = np.degrees(np.arccos(forwards.clip(-1, 1)))
    # What is behind the rim is drawn on it.
    distance = np.minimum(to_the_front / RIM, 1.0)
    around = np.arctan2(-upwards, sideways)
    across, down = distance * np.cos(around), distance * np.sin(around)
    return np.stack([across, down], axis=1)
