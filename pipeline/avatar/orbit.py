"""The head from all sides, without a driver: a closed film, and a sheet of stills."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.avatar.animator import Animator, Avatar
from pipeline.avatar.studio import film_size
from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes
from pipeline.core.films import encode_mp4
from pipeline.core.pictures import below, beside, encode_jpeg, tile
from pipeline.core.progress import progress
from pipeline.geometry import camera_path

RATE = 25  # frames a second
SECONDS = 4  # of one round
STILLS, STILL = 7, 128  # how many in a line, pixels

Round = Literal["sway", "turn"]


def orbit(
    animator: Animator,
    avatar: Avatar,
    out: Path,
    path: Round = "sway",
    size: int = 0,
) -> Path:
    """Write the film `out`, with the photo's own motion, and a sheet of stills; returns the sheet's path.

    `sway` is an ellipse in front of the face, as far as training has seen heads; `turn` goes all around, and
    the back is a guess. `size` is that of a picture in pixels, see `film_size`. Raises UserError when `out`
    is no .mp4 or cannot be written.
    """
    if out.suffix.lower() != ".mp4":
        raise UserError(f"{out}: the film of an orbit is an MP4; name it {out.with_suffix('.mp4')}.")
    size = film_size(size, animator)
    count = RATE * SECONDS
    # Both paths are closed, so that the film can be repeated without a jump.
    cameras = camera_path.orbit(count) if path == "sway" else camera_path.turntable(count)
    pictures = look_from(animator, avatar, cameras)
    shown = progress(pictures, label="orbit", total=count, unit="frames")
    large = (tile(picture, size) for picture in shown)
    write_bytes(out, encode_mp4(large, RATE))
    sheet = out.with_suffix(".jpg")
    write_bytes(sheet, encode_jpeg(stills(animator, avatar)))
    return sheet


def stills(animator: Animator, avatar: Avatar) -> np.ndarray:
    """Two lines of stills with captions: across the range of training, and all around."""
    across = camera_path.sweep_yaws(STILLS)
    around = 2 * np.pi * np.arange(STILLS) / STILLS
    lines = [
        _line(animator, avatar, across, camera_path.yaw_sweep(STILLS)),
        _line(animator, avatar, around, camera_path.turntable(STILLS)),
    ]
    return below(lines, gap=4)


def _line(
    animator: Animator,
    avatar: Avatar,
    yaws_N: np.ndarray,
    cameras_N25: np.ndarray,
) -> np.ndarray:
    # Negative: people count to the right of the picture, the paths' yaw to its left.
    captions = [f"{round(-np.degrees(yaw)):+d} degrees" for yaw in yaws_N]
    pictures = look_from(animator, avatar, cameras_N25)
    return beside([tile(picture, STILL) for picture in pictures], captions)


def look_from(
    animator: Animator,
    avatar: Avatar,
    cameras_N25: np.ndarray,
) -> Iterator[np.ndarray]:
    """A picture (S, S, 3) uint8 of the photo's own face from each camera, one at a time."""
    motion = avatar.motion_1M.expand(len(cameras_N25), -1)
    return animator.pictures(avatar, motion, cameras_N25)
