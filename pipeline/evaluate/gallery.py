"""The pictures of the report: a contact sheet and films at the clips' own speed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.clips.held_out import Frame, HeldOutClips, stack_frames
from pipeline.clips.times import clip_times
from pipeline.core.films import encode_mp4
from pipeline.core.pictures import below, beside, coloured_depth, encode_jpeg_within, tile, to_uint8
from pipeline.evaluate.film_measures import followed
from pipeline.evaluate.film_watch import SIDE, FilmWatch
from pipeline.evaluate.instruments import Instruments
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


@dataclass(frozen=True)
class Film:
    """A reenacted clip as MP4: the name of its file, what is in it, and its frames a second.

    `measures` are those of film_watch, and of `truth_followed` where the truth is known.
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
    instruments: Instruments,
) -> Film:
    """The source of a pair under the clip of its driving frame, by FILM_FRAMES frames at most.

    `ingest` is the folder whose tables know when the frames were taken; `instruments` read the result.
    """
    source = pair.source
    clip = pair.driving.clip
    keys = clips.clips[clip][:FILM_FRAMES]
    drivings = [clips.frame(key) for key in keys]
    rate, seconds = clip_times(ingest, clip, keys)
    watch = FilmWatch(instruments.reader.faces)
    images = reenactment(source, drivings, synthesizers)
    data = encode_mp4(_montage(source, drivings, images, watch), rate, seconds)
    driver = [watch.landmarks(tile(_picture(driving.image), SIDE)) for driving in drivings]
    measures = watch.measures(np.stack(driver), np.array(seconds))
    if instruments.truth:
        measures["truth"] = truth_followed(instruments, drivings, images[::2], np.stack(watch.points))
    return Film(
        name=f"{kind}-{source.clip}-{clip}.mp4",
        data=data,
        rate=rate,
        measures=measures,
    )


def truth_followed(
    instruments: Instruments,
    drivings: Sequence[Frame],
    results_NCHW: Tensor,
    points_N702: np.ndarray,
) -> dict[str, Any]:
    """How results follow the true motion of generated drivers, by two instruments.

    `mesh` reads the results' landmarks `points_N702`; `estimator` is the calibrated regressor of expressions,
    which looks at the pictures and errs in other ways. The numbers are those of `film_measures.followed`.
    """
    wanted = instruments.motion(drivings)
    estimates = instruments.expression_pose(results_NCHW)
    return {
        "mesh": followed(wanted, instruments.reader.measure(points_N702)),
        "estimator": followed(wanted, instruments.expression_truth.motion(estimates)),
    }


def reenactment(
    source: Frame,
    drivings: Sequence[Frame],
    synthesizers: Synthesizers,
) -> Tensor:
    """Images (2 N, 3, S, S): of each of `drivings` the result at its camera, then from one that orbits."""
    orbit = torch.from_numpy(camera_path.orbit(len(drivings)))
    fitted = stack_frames(drivings, "camera")
    cameras = torch.stack([fitted, orbit.to(fitted.device)], dim=1)
    return synthesizers.draw("psi", [source] * len(drivings), drivings, cameras).image


def _montage(
    source: Frame,
    drivings: Sequence[Frame],
    images: Tensor,
    watch: FilmWatch,
) -> Iterable[np.ndarray]:
    """Pictures of a film, (CAPTION + TILE, 4 TILE, 3) uint8, one for each of `drivings`.

    They show the source, the driving frame, and both `images` of it. `watch` sees the results.
    """
    pictures = to_uint8(images)
    results, turned = pictures[::2], pictures[1::2]
    still = _picture(source.image)
    for driving, result, side in zip(drivings, results, turned, strict=True):
        driver = _picture(driving.image)
        watch.see(result, driver)
        row = (still, driver, result, side)
        yield beside([tile(picture, TILE) for picture in row], FILM_TITLES)
