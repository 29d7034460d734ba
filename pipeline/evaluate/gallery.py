"""The pictures of the report: a contact sheet and films at the clips' own speed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.clips.held_out import Frame, HeldOutClips, stack_frames
from pipeline.core.films import encode_mp4, frame_rate
from pipeline.core.pictures import below, beside, coloured_depth, encode_jpeg_within, tile, to_uint8
from pipeline.evaluate.film_watch import SIDE, FilmWatch
from pipeline.evaluate.instruments import FaceReader
from pipeline.evaluate.methods import Synthesizers
from pipeline.evaluate.protocol import Pair
from pipeline.geometry import camera_path

# Pixels of the side of a picture.
TILE = 128
# The sheet is one of the metrics, which are kept in git.
SHEET_BYTES = 400_000
# A film has so many frames at most, each of which is drawn twice.
FILM_FRAMES = 96
FILM_TITLES = ("source", "driving", "result", "free camera")
# Frames a second of a clip whose container does not say; its time stamps are kept all the same.
UNKNOWN_RATE = 25.0


@dataclass(frozen=True)
class Film:
    """A reenacted clip as MP4: the name of its file, what is in it, and its frames a second.

    `measures` are those of film_watch.
    """

    name: str
    data: bytes
    rate: Fraction
    measures: dict[str, Any] = field(default_factory=dict)


def contact_sheet(
    rows: Sequence[tuple[str, Pair]],
    synthesizers: Synthesizers,
    views: int,
) -> bytes:
    """A JPEG below 400 kB with a row for each pair, called "self" or "cross" by the text before it.

    Columns: source, driving frame, result, `views` other sides, depth.
    """
    sides = torch.from_numpy(camera_path.yaw_sweep(views))
    # What people read is positive for a camera on the right of the picture.
    degrees = -np.degrees(camera_path.sweep_yaws(views))
    angles = [f"{round(angle):+d} degrees" for angle in degrees]
    strips = []
    for kind, (source, driving) in rows:
        own = driving.camera[None]
        cameras = torch.cat([own, sides.to(own.device)])
        drawn = synthesizers.draw("psi", [source], [driving], cameras[None])
        # The depth is that of the result, at the driving camera.
        depth = drawn.depth[0, 0].cpu().numpy()
        opacity = drawn.opacity[0, 0].cpu().numpy()
        pictures = [
            _picture(source.image),
            _picture(driving.image),
            *to_uint8(drawn.image),
            coloured_depth(depth, opacity),
        ]
        tiles = [tile(picture, TILE) for picture in pictures]
        titles = [f"{kind}: source", "driving", "result", *angles, "depth"]
        strips.append(beside(tiles, titles))
    return encode_jpeg_within(below(strips), SHEET_BYTES)


def _picture(image_CHW: Tensor) -> np.ndarray:
    return to_uint8(image_CHW[None])[0]


def film(
    kind: str,
    pair: Pair,
    clips: HeldOutClips,
    synthesizers: Synthesizers,
    ingest: Path,
    reader: FaceReader,
) -> Film:
    """The source of a pair under the clip of its driving frame, by FILM_FRAMES frames at most.

    `ingest` is the folder whose tables know when the frames were taken; `reader` finds the face again.
    """
    source = pair.source
    clip = pair.driving.clip
    keys = clips.clips[clip][:FILM_FRAMES]
    drivings = [clips.frame(key) for key in keys]
    rate, seconds = clip_times(ingest, clip, keys)
    watch = FilmWatch(reader.faces)
    pictures = reenactment(source, drivings, synthesizers, watch)
    data = encode_mp4(pictures, rate, seconds)
    driver = [watch.landmarks(tile(_picture(driving.image), SIDE)) for driving in drivings]
    return Film(
        name=f"{kind}-{source.clip}-{clip}.mp4",
        data=data,
        rate=rate,
        measures=watch.measures(np.stack(driver), np.array(seconds)),
    )


def clip_times(
    ingest: Path,
    clip: str,
    keys: Sequence[str],
) -> tuple[Fraction, list[float]]:
    """The frame rate of a clip, and the seconds from the first of its frames `keys` to each.

    The seconds ascend. A film with them runs as fast as the clip: where a frame between was
    rejected, the one before is shown longer. The frames of a file whose time stamps do not ascend
    are taken as evenly spaced.
    """
    clips = pq.read_table(ingest / "clips.parquet", columns=["fps"], filters=[("key", "=", clip)])
    frames = pq.read_table(
        ingest / "frames.parquet",
        columns=["key", "seconds"],
        filters=[("clip", "=", clip)],
    )
    mean_rate = clips["fps"][0].as_py()
    rate = frame_rate(mean_rate or UNKNOWN_RATE)
    stamps = {row["key"]: row["seconds"] for row in frames.to_pylist()}
    seconds = [stamps[key] - stamps[keys[0]] for key in keys]
    if any(before >= after for before, after in pairwise(seconds)):
        seconds = [float(number / rate) for number in range(len(keys))]
    return rate, seconds


def reenactment(
    source: Frame,
    drivings: Sequence[Frame],
    synthesizers: Synthesizers,
    watch: FilmWatch,
) -> Iterable[np.ndarray]:
    """Pictures of a film, (CAPTION + TILE, 4 TILE, 3) uint8, one for each of `drivings`.

    They show the source, the driving frame, the result at the driving camera and from a camera that
    orbits. `watch` sees the results.
    """
    orbit = torch.from_numpy(camera_path.orbit(len(drivings)))
    fitted = stack_frames(drivings, "camera")
    cameras = torch.stack([fitted, orbit.to(fitted.device)], dim=1)
    drawn = synthesizers.draw("psi", [source] * len(drivings), drivings, cameras)
    # The pictures of both cameras take turns.
    pictures = to_uint8(drawn.image)
    results, turned = pictures[::2], pictures[1::2]
    still = _picture(source.image)
    for driving, result, side in zip(drivings, results, turned, strict=True):
        driver = _picture(driving.image)
        watch.see(result, driver)
        row = (still, driver, result, side)
        yield beside([tile(picture, TILE) for picture in row], FILM_TITLES)
