"""Cameras: the one statement of the conventions (facts 2.1).

World: FLAME metres times 3, origin at the neck joint of the canonical head; x right, y up, z towards the
frontal camera. Camera: OpenGL style, looks along its own -z, y up. A camera is 25 float32 numbers: camera-to-
world 4x4 row by row, then normalised intrinsics 3x3 row by row (image width = 1, v down). Pixel i of N has
its centre at (i + 0.5) / N.
"""

import math

import numpy as np

from model.head.label import Array
from pipeline.geometry.rotations import angles_between

FOCAL = 1.0 / (2.0 * math.tan(math.radians(6.0)))  # vertical field of view of 12 degrees
INTRINSICS = np.array(
    [
        [FOCAL, 0.0, 0.5],
        [0.0, FOCAL, 0.5],
        [0.0, 0.0, 1.0],
    ],
    np.float32,
)


def pack(cam2world_44: np.ndarray, intrinsics_33: np.ndarray = INTRINSICS) -> np.ndarray:
    """The 25 numbers of a camera, float32. Raises ValueError when the rotation is none."""
    rotation = cam2world_44[:3, :3]
    # A rotation times its transpose is the identity. So it is for a mirror image, whose determinant is -1.
    square = rotation @ rotation.T
    orthogonal = np.allclose(square, np.eye(3), atol=1e-4)
    mirrored = np.linalg.det(rotation) < 0
    if mirrored or not orthogonal:
        raise ValueError("the camera-to-world matrix has no proper rotation in it")
    numbers = np.concatenate([cam2world_44, intrinsics_33], axis=None)
    return numbers.astype(np.float32)


def unpack(camera_25: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Camera-to-world 4x4 and intrinsics 3x3 of 25 numbers."""
    camera = np.asarray(camera_25)
    cam2world = camera[:16].reshape(4, 4)
    intrinsics = camera[16:].reshape(3, 3)
    return cam2world, intrinsics


def rotation(camera_X25: Array) -> Array:
    """Camera-to-world rotations (..., 3, 3) of cameras (..., 25), or of labels, which begin with one."""
    leading = camera_X25.shape[:-1]
    cam2world = camera_X25[..., :16].reshape(*leading, 4, 4)
    return cam2world[..., :3, :3]


def rotation_between(a_25: np.ndarray, b_25: np.ndarray) -> float:
    """The angle between two cameras' rotations, degrees."""
    angle = angles_between(rotation(a_25), rotation(b_25))
    return float(np.degrees(angle))


def project(points_N3: np.ndarray, camera_25: np.ndarray) -> np.ndarray:
    """World points to image fractions (u right, v down), shape (N, 2), float64."""
    camera = np.asarray(camera_25, np.float64)
    cam2world, intrinsics = unpack(camera)
    offset = points_N3 - cam2world[:3, 3]
    local = offset @ cam2world[:3, :3]
    x, y, z = local.T
    # The camera looks along -z with y up, an image has v down: both change sign.
    plane = np.stack([x, -y, -z], axis=1)
    image = plane @ intrinsics.T
    return image[:, :2] / image[:, 2:]


def look_at(
    yaw: float,
    vertical: float,
    radius: float,
    target: np.ndarray,
    roll: float = 0.0,
) -> np.ndarray:
    """A camera on the sphere of `radius` around the world origin that looks at `target` (facts 2.1 and 3.5).

    `yaw` in radians; `vertical` is the official parameter b: the elevation is asin(2b/pi). `roll` tilts the
    up vector by that many radians.
    """
    elevation = math.asin(2.0 * vertical / math.pi)
    across = math.cos(elevation)
    towards = np.array(
        [
            -across * math.sin(yaw),
            math.sin(elevation),
            across * math.cos(yaw),
        ]
    )
    origin = radius * towards
    # The axes of the camera: it looks along -back.
    back = origin - np.asarray(target, np.float64)
    back /= np.linalg.norm(back)
    upwards = [math.sin(roll), math.cos(roll), 0.0]
    right = np.cross(upwards, back)
    right /= np.linalg.norm(right)
    up = np.cross(back, right)
    cam2world = np.eye(4)
    cam2world[:3] = np.stack([right, up, back, origin], axis=1)
    return pack(cam2world)


def sample_look_at(rng: np.random.Generator) -> np.ndarray:
    """A camera of the look-at distribution (facts 3.5).

    Yaw +-44.7 degrees, elevation -9.2 to 24.4, roll +-14.3.
    """
    # The order of these draws is that of all cameras ever drawn: a change makes other ones.
    yaw = rng.uniform(-0.78, 0.78)
    vertical = rng.uniform(-0.25, 0.65)
    radius = rng.uniform(3.65, 4.45)
    x = rng.uniform(-0.03, 0.03)
    y = rng.uniform(-0.03, 0.03)
    z = rng.uniform(0.06, 0.12)
    roll = rng.uniform(-0.25, 0.25)
    target = np.array([x, y, z])
    return look_at(yaw, vertical, radius, target, roll)
