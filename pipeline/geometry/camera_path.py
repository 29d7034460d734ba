"""Paths of cameras around a head, along which films and contact sheets show it: float32 (N, 25) each.

All but `front` stay on the sphere of RADIUS around the world origin and look at the middle of the head. Yaw
is in radians, positive for a camera on the left of the picture, as in `camera.look_at`.
"""

import numpy as np

from pipeline.geometry.camera import look_at, pack

RADIUS = 4.2  # world units, the distance of the published inference (facts 8)
FOCUS = np.array([0.0, 0.0, 0.09])  # the middle of the published look-at range (facts 3.5)
VERTICAL = 0.1  # slightly from above: 3.6 degrees
# Sideways and up or down, how far a path goes: published cameras cover 0.78 and -0.25 to 0.65 (facts 3.5).
REACH, RISE = 0.6, 0.2


def front(count: int) -> np.ndarray:
    """A camera that stands still, straight in front of the face (facts 8)."""
    cam2world = np.eye(4)
    cam2world[:3, 3] = (0.0, 0.01, RADIUS)
    return np.tile(pack(cam2world), (count, 1))


def yaw_sweep(count: int, reach: float = REACH) -> np.ndarray:
    """Cameras at one height, evenly spread from yaw -`reach` to `reach`; a single one stands near the end."""
    return _path(sweep_yaws(count, reach), np.full(count, VERTICAL))


def sweep_yaws(count: int, reach: float = REACH) -> np.ndarray:
    """The yaws of `yaw_sweep`, radians, (N,)."""
    return np.linspace(-reach, reach, count) if count > 1 else np.full(count, 0.8 * reach)


def orbit(
    count: int,
    reach: float = REACH,
    rise: float = RISE,
) -> np.ndarray:
    """One closed ellipse in front of the face: `reach` to both sides, `rise` of `look_at`'s `vertical` up and
    down.

    It begins at its highest point; after the last camera comes the first, so that a film of it can be
    repeated.
    """
    turns = 2 * np.pi * np.arange(count) / count
    return _path(reach * np.sin(turns), VERTICAL + rise * np.cos(turns))


def turntable(count: int) -> np.ndarray:
    """One full turn around the head at one height, from the front over the left of the picture; closed."""
    return _path(2 * np.pi * np.arange(count) / count, np.full(count, VERTICAL))


def _path(yaws_N: np.ndarray, verticals_N: np.ndarray) -> np.ndarray:
    places = zip(yaws_N, verticals_N, strict=True)
    cameras = [look_at(yaw, vertical, RADIUS, FOCUS) for yaw, vertical in places]
    return np.array(cameras, np.float32).reshape(-1, 25)
