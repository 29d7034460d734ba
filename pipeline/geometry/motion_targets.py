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
MIRROR = np.array(
    [
        *range(16, -1, -1),
        *range(26, 16, -1),
        *_NOSE,
        *_EYES,
        *_LIPS,
        *(69, 68),
    ]
)
# Of each eye: corners in the order of x, upper and lower lid, pupil.
EYES = (
    (36, 39, (37, 38), (41, 40), 68),
    (42, 45, (43, 44), (47, 46), 69),
)
# Upper and lower point of three pairs along the opening of the mouth.
LIPS = ((61, 67), (62, 66), (63, 65))
MOUTH_CORNERS = [48, 54]
BROWS_AND_CORNERS = [*range(17, 27), *MOUTH_CORNERS]


def motion_targets(points_N70x2: np.ndarray) -> dict[str, np.ndarray]:
    """What the parts of a motion embedding are taught, float32; NaN where the points are.

    `eye` (N, 6): opening of the lids and place of the pupil, both eyes, where the corners are 1 apart;
    `emotion` (N, 24): brows and mouth corners; `mouth` (N, 40): lips around the middle of the mouth. The last
    two are in interocular distances, x along the line of the eyes.
    """
    z = _complex(points_N70x2)
    right = z[:, RIGHT_EYE].mean(1, keepdims=True)
    left = z[:, LEFT_EYE].mean(1, keepdims=True)
    between_eyes = (left + right) / 2
    # Without a face the points are NaN, which numpy would warn about.
    with np.errstate(invalid="ignore"):
        eyes = [_eye(z, *indices) for indices in EYES]
        face = (z - between_eyes) / (left - right)
    corners = face[:, MOUTH_CORNERS]
    middle = corners.mean(1, keepdims=True)
    lips = face[:, MOUTH] - middle
    return {
        "eye": np.concatenate(eyes, axis=1),
        "emotion": _flat(face[:, BROWS_AND_CORNERS]),
        "mouth": _flat(lips),
    }


def motion_measures(points_N70x2: np.ndarray) -> dict[str, np.ndarray]:
    """Named motions (N,), relative to interocular distance or eye width.

    They are openings of mouth and eyes, width of the mouth, height of the brows and gaze to the side.
    """
    z = _complex(points_N70x2)
    left_eye = z[:, LEFT_EYE].mean(1)
    right_eye = z[:, RIGHT_EYE].mean(1)
    between = np.abs(left_eye - right_eye)
    opening = sum(np.abs(z[:, upper] - z[:, lower]) for upper, lower in LIPS)
    right_corner, left_corner = z[:, MOUTH_CORNERS].T
    width = np.abs(left_corner - right_corner)
    targets = motion_targets(points_N70x2)
    eyes = targets["eye"]
    # The y of the ten points of the brows, which is larger further down.
    brows = targets["emotion"][:, 1:20:2]
    return {
        "mouth_opening": opening / 3 / between,
        "mouth_width": width / between,
        "eye_opening": eyes[:, [0, 3]].mean(1),
        "gaze": eyes[:, [1, 4]].mean(1),
        "brow_height": -brows.mean(1),
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
    first = z_NK[:, outer]
    second = z_NK[:, inner]
    width = second - first
    gap = z_NK[:, upper] - z_NK[:, lower]
    opening = np.abs(gap / width[:, None]).mean(1)
    middle = (first + second) / 2
    gaze = (z_NK[:, pupil] - middle) / width
    numbers = [opening, gaze.real, gaze.imag]
    return np.stack(numbers, axis=1).astype(np.float32)


def _complex(points_N70x2: np.ndarray) -> np.ndarray:
    points = np.asarray(points_N70x2, np.float64)
    x, y = np.moveaxis(points, -1, 0)
    return x + 1j * y


def _flat(z_NK: np.ndarray) -> np.ndarray:
    """x and y of each point, interleaved."""
    pairs = np.stack([z_NK.real, z_NK.imag], axis=-1)
    flat = pairs.reshape(len(z_NK), -1)
    return flat.astype(np.float32)
