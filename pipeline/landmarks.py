"""From the 478 points of the face mesh (468 of the skin, 10 of the irises) to the 70 that the project speaks of: 68 of iBUG, then two pupils."""

import numpy as np

# iBUG numbers its points from the person's right, which is the left of the image; so do the pupils (facts 5.3: WFLW 96, 97).
MESH_TO_70 = np.array(
    [162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389]  # contour
    + [71, 63, 105, 66, 107, 336, 296, 334, 293, 301]  # brows
    + [168, 197, 5, 4, 75, 97, 2, 326, 305]  # nose
    + [33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380]  # eyes
    + [61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87]  # lips
    + [468, 473]  # pupils
)
CONTOUR = slice(0, 17)
RIGHT_EYE, LEFT_EYE = slice(36, 42), slice(42, 48)  # of the person
MOUTH = slice(48, 68)
PUPILS = slice(68, 70)


def landmarks_70(mesh_N478x3: np.ndarray) -> np.ndarray:
    """The 70 points (..., 70, 2) of face meshes (..., 478, 3), in the mesh's own unit; the depth, which the mesh only guesses, is left out."""
    return np.asarray(mesh_N478x3)[..., MESH_TO_70, :2]


def interocular(points_N70x2: np.ndarray) -> np.ndarray:
    """Distance between the eye centres, each the mean of its six lid points, shape (...,); the unit of landmark errors."""
    right, left = points_N70x2[..., RIGHT_EYE, :].mean(-2), points_N70x2[..., LEFT_EYE, :].mean(-2)
    return np.linalg.norm(left - right, axis=-1)
