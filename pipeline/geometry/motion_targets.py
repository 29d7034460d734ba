"""What moves in a face, as numbers from its landmarks: what the parts of a motion embedding are taught and judged by.

A point is a complex number here; dividing by the vector between two reference points takes shift, size and tilt of the face out at once.
"""

import numpy as np

# Each of the 70 points seen in a mirror: contour and brows, nose, eyes, lips, pupils.
_NOSE, _EYES = [27, 28, 29, 30, 35, 34, 33, 32, 31], [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
_LIPS = [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
MIRROR = np.array([*range(16, -1, -1), *range(26, 16, -1), *_NOSE, *_EYES, *_LIPS, 69, 68])
EYES = (
    (36, 39, (37, 38), (41, 40), 68),
    (42, 45, (43, 44), (47, 46), 69),
)  # corners in the order of x, upper and lower lid, pupil
LIPS = ((61, 67), (62, 66), (63, 65))


def motion_targets(points_N70x2: np.ndarray) -> dict[str, np.ndarray]:
    """`eye` (N, 6): opening of the lids and place of the pupil, both eyes, corners = 1 apart; `emotion` (N, 24): brows and mouth corners;
    `mouth` (N, 40): lips around the middle of the mouth; the last two in interocular distances, x along the line of the eyes. float32; NaN
    where the points are.
    """
    z = _complex(points_N70x2)
    right, left = z[:, 36:42].mean(1, keepdims=True), z[:, 42:48].mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        eyes = [_eye(z, *indices) for indices in EYES]
        face = (z - (left + right) / 2) / (left - right)
    brows_and_corners = face[:, [*range(17, 27), 48, 54]]
    lips = face[:, 48:68] - face[:, [48, 54]].mean(1, keepdims=True)
    return {"eye": np.concatenate(eyes, axis=1), "emotion": _flat(brows_and_corners), "mouth": _flat(lips)}


def motion_measures(points_N70x2: np.ndarray) -> dict[str, np.ndarray]:
    """Named motions (N,): openings of mouth and eyes, width of the mouth, height of the brows, gaze to the side; relative to interocular
    distance or eye width.
    """
    z = _complex(points_N70x2)
    between = np.abs(z[:, 42:48].mean(1) - z[:, 36:42].mean(1))
    targets = motion_targets(points_N70x2)
    return {
        "mouth_opening": sum(np.abs(z[:, a] - z[:, b]) for a, b in LIPS) / 3 / between,
        "mouth_width": np.abs(z[:, 54] - z[:, 48]) / between,
        "eye_opening": targets["eye"][:, [0, 3]].mean(1),
        "gaze": targets["eye"][:, [1, 4]].mean(1),
        "brow_height": -targets["emotion"][:, 1:20:2].mean(1),
    }


def _eye(
    z_NK: np.ndarray, outer: int, inner: int, upper: tuple[int, int], lower: tuple[int, int], pupil: int
) -> np.ndarray:
    """Opening of the lids, x and y of the pupil from the middle of the corners, (N, 3) float32."""
    width = z_NK[:, inner] - z_NK[:, outer]
    opening = np.abs((z_NK[:, upper] - z_NK[:, lower]) / width[:, None]).mean(1)
    gaze = (z_NK[:, pupil] - (z_NK[:, outer] + z_NK[:, inner]) / 2) / width
    return np.stack([opening, gaze.real, gaze.imag], axis=1).astype(np.float32)


def _complex(points_N70x2: np.ndarray) -> np.ndarray:
    points = np.asarray(points_N70x2, np.float64)
    return points[..., 0] + 1j * points[..., 1]


def _flat(z_NK: np.ndarray) -> np.ndarray:
    """x and y of each point, interleaved."""
    return np.stack([z_NK.real, z_NK.imag], axis=-1).reshape(len(z_NK), -1).astype(np.float32)
