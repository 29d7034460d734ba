"""From the 478 points of the face mesh to our 70.

The mesh has 468 points of the skin and 10 of the irises; the 70 are the 68 of iBUG, then the two pupils.
"""

import numpy as np

# iBUG numbers its points from the person's right, which is the left of the image; so do the pupils (facts
# 5.3: WFLW 96, 97). Of the mesh points in question those nearest to the official landmarks (WFLW, re-indexed
# as in facts 5.3) of the 16 official portraits were taken, the same on both sides; the usual list is off by a
# tenth of the interocular distance in lips, jaw and ends of the brows.
_CONTOUR = [127, 234, 93, 132, 58, 136, 150, 176, 152, 400, 379, 365, 288, 361, 323, 454, 356]
_BROWS = [70, 63, 105, 66, 107, 336, 296, 334, 293, 300]
_NOSE = [168, 197, 5, 4, 240, 97, 2, 326, 460]
_EYES = [33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380]
_LIPS = [61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91, 78, 81, 13, 311, 308, 402, 14, 178]
_PUPILS = [468, 473]
MESH_TO_70 = np.array(
    [
        *_CONTOUR,
        *_BROWS,
        *_NOSE,
        *_EYES,
        *_LIPS,
        *_PUPILS,
    ]
)

CONTOUR = slice(0, 17)
RIGHT_EYE, LEFT_EYE = slice(36, 42), slice(42, 48)  # of the person
MOUTH = slice(48, 68)
PUPILS = slice(68, 70)


def landmarks_70(mesh_N478x3: np.ndarray) -> np.ndarray:
    """The 70 points (..., 70, 2) of face meshes (..., 478, 3), in the mesh's own unit.

    The depth, which the mesh only guesses, is left out.
    """
    mesh = np.asarray(mesh_N478x3)
    return mesh[..., MESH_TO_70, :2]


def interocular(points_N70x2: np.ndarray) -> np.ndarray:
    """Distance between the eye centres, shape (...,): the unit of landmark errors.

    A centre is the mean of the six lid points of an eye.
    """
    right = points_N70x2[..., RIGHT_EYE, :].mean(-2)
    left = points_N70x2[..., LEFT_EYE, :].mean(-2)
    offset = left - right
    return np.linalg.norm(offset, axis=-1)
