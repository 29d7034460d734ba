"""What moves in a face, as numbers from its landmarks.

The parts of a motion embedding are taught and judged by them. A point is a complex number here; dividing by
the vector between two reference points takes shift, size and tilt of the face out at once.
"""

import numpy as np

from pipeline.geometry.landmarks import LEFT_EYE, MOUTH, RIGHT_EYE

# Each of the 70 points seen in a mirror: contour and brows, nose, eyes, lips, pupils.
_NOSE = [27, 28, 29, 30, 35, 34, 33, 32, 31]
_EYES = [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
_LIPS = [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
MIRROR = np.array([*range(16, -1, -1), *range(26, 16, -1), *_NOSE, *_EYES, *_LIPS, 69, 68])
# Of each eye: corners in the order of x, upper and lower lid, pupil.
EYES = (
    (36, 39, (37, 38), (41, 40), 68),
    (42, 45, (43, 44), (47, 46), 69),
)
LIPS = ((61, 67), (62, 66), (63, 65))


def motion_targets(points_N70x2: np.ndarray) -> dict[str, np.ndarray]:
    """What the parts of a motion embedding are taught, float32; NaN where the points are.

    `eye` (N, 6): opening of the lids and place of the pupil, both eyes, where the corners are 1 apart;
    `emotion` (N, 24): brows and mouth corners; `mouth` (N, 40): lips around the middle of the mouth. The last
    two are in interocular distances, x along the line of the eyes.
    """
    z = _complex(points_N70x2)
    right = z[:, RIGHT_EYE].mean(1, keepdims=True)
    left = z[:, LEFT_EYE].mean(1, keepdims=True)
    # Without a face the points are NaN, which numpy would warn about.
    with np.errstate(invalid="ignore"):
        eyes = [_eye(z, *indices) for indices in EYES]
        face = (z - (left + right) / 2) / (left - right)
    brows_and_corners = face[:, [*range(17, 27), 48, 54]]
    middle = face[:, [48, 54]].mean(1, keepdims=True)
    return {
        "eye": np.concatenate(eyes, axis=1),
        "emotion": _flat(brows_and_corners),
        "mouth": _flat(face[:, MOUTH] - middle),
    }


def motion_measures(points_N70x2: np.ndarray) -> dict[str, np.ndarray]:
    """Named motions (N,), relative to interocular distance or eye width.

    They are openings of mouth and eyes, width of the mouth, height of the brows and gaze to the side.
    """
    z = _complex(points_N70x2)
    between = np.abs(z[:, LEFT_EYE].mean(1) - z[:, RIGHT_EYE].mean(1))
    opening = sum(np.abs(z[:, upper] - z[:, lower]) for upper, lower in LIPS)
    targets = motion_targets(points_N70x2)
    return {
        "mouth_opening": opening / 3 / between,
        "mouth_width": np.abs(z[:, 54] - z[:, 48]) / between,
        "eye_opening": targets["eye"][:, [0, 3]].mean(1),
        "gaze": targets["eye"][:, [1, 4]].mean(1),
        "brow_height": -targets["emotion"][:, 1:20:2].mean(1),
    }


def _eye(
    z_NK: np.ndarray,
    outer: int,
    inner: int,
    upper: tuple[int, int],
    lower: tuple[int, int],
    pupil: int,
) -> np.ndarray:
    """Opening of the lids, x and y of the pupil from the middle of the corners, (N, 3) float32."""
    width = z_NK[:, inner] - z_NK[:, outer]
    gap = z_NK[:, upper] - z_NK[:, lower]
    opening = np.abs(gap / width[:, None]).mean(1)
    middle = (z_NK[:, outer] + z_NK[:, inner]) / 2
    gaze = (z_NK[:, pupil] - middle) / width
    return np.stack([opening, gaze.real, gaze.imag], axis=1).astype(np.float32)


def _complex(points_N70x2: np.ndarray) -> np.ndarray:
    points = np.asarray(points_N70x2, np.float64)
    return points[..., 0] + 1j * points[..., 1]


def _flat(z_NK: np.ndarray) -> np.ndarray:
    """x and y of each point, interleaved."""
    pairs = np.stack([z_NK.real, z_NK.imag], axis=-1)
    return pairs.reshape(len(z_NK), -1).astype(np.float32)
