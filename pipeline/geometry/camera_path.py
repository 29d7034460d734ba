"""Paths of cameras along which films and contact sheets show a head: float32 (N, 25) each.

All but `front` stay on the sphere of RADIUS around the world origin and look at the middle of the
head. Yaw is in radians, positive for a camera on the left of the picture, as in `camera.look_at`.
"""

import numpy as np

from pipeline.geometry.camera import look_at, pack
from pipeline.geometry.curves import circle

# The distance of the published inference, in world units (facts 8).
RADIUS = 4.2
# The middle of the published look-at range (facts 3.5): all but `front` look at it.
FOCUS = np.array([0.0, 0.0, 0.09])
# Slightly from above, 3.6 degrees; `look_at` says what the number is.
VERTICAL = 0.1
# How far paths go sideways, and up and down: training saw 0.78 and -0.25 to 0.65 (facts 3.5).
REACH = 0.6
RISE = 0.2


def front(count: int) -> np.ndarray:
    """A camera that stands still, straight in front of the face (facts 8)."""
    cam2world = np.eye(4)
    cam2world[:3, 3] = (0.0, 0.01, RADIUS)
    return np.tile(pack(cam2world), (count, 1))


def yaw_sweep(count: int, reach: float = REACH) -> np.ndarray:
    """Cameras at one height, evenly spread from yaw -`reach` to `reach`; one alone is at 0.8 `reach`."""
    yaws = sweep_yaws(count, reach)
    verticals = np.full(count, VERTICAL)
    return _path(yaws, verticals)


def sweep_yaws(count: int, reach: float = REACH) -> np.ndarray:
    """The yaws of `yaw_sweep`, radians, (N,)."""
    # A single view from the front would show nothing that the driving frame does not.
    if count < 2:
        return np.full(count, 0.8 * reach)
    return np.linspace(-reach, reach, count)


def orbit(
    count: int,
    reach: float = REACH,
    rise: float = RISE,
) -> np.ndarray:
    """A closed ellipse in front of the face: `reach` to both sides, `rise` up and down.

    `rise` is in the unit of `look_at`'s `vertical`. The path begins at its highest point, and after
    the last camera comes the first, so that a film of it can be repeated.
    """
    turns = circle(count)
    yaws = reach * np.sin(turns)
    verticals = VERTICAL + rise * np.cos(turns)
    return _path(yaws, verticals)


def turntable(count: int) -> np.ndarray:
    """A full turn around the head at one height, from the front to the left of the picture."""
    verticals = np.full(count, VERTICAL)
    return _path(circle(count), verticals)


def _path(yaws_N: np.ndarray, verticals_N: np.ndarray) -> np.ndarray:
    places = zip(yaws_N, verticals_N, strict=True)
    cameras = [look_at(yaw, vertical, RADIUS, FOCUS) for yaw, vertical in places]
    # Of no cameras at all, too, the width is known.
    packed = np.array(cameras, np.float32)
    return packed.reshape(-1, 25)
