"""Rotations as matrices and as axis-angle vectors.

The way there, for tensors, is `model.head.flame.rotation_matrices`.
"""

import numpy as np


def rotation_vectors(matrices_N33: np.ndarray) -> np.ndarray:
    """Rotation matrices to axis-angle vectors (N, 3), radians; 0 for what is no rotation.

    R - R^T holds the axis times twice the sine of the angle, and the trace of R is one plus twice the cosine.
    """
    off = matrices_N33 - matrices_N33.transpose(0, 2, 1)
    x = off[:, 2, 1]
    y = off[:, 0, 2]
    z = off[:, 1, 0]
    skew = np.stack([x, y, z], axis=1)
    sine = np.linalg.norm(skew, axis=1, keepdims=True) / 2
    trace = np.trace(matrices_N33, axis1=1, axis2=2)
    cosine = (trace[:, None] - 1) / 2
    # Where there is hardly a rotation, its angle is as large as its sine.
    angle = np.arctan2(sine, cosine)
    ratio = angle / np.maximum(sine, 1e-8)
    stretch = np.where(sine > 1e-8, ratio, 1.0)
    return skew / 2 * stretch


def angles_between(a_X33: np.ndarray, b_X33: np.ndarray) -> np.ndarray:
    """The angles between rotations (..., 3, 3), radians.

    Rounding may take a cosine beyond 1, which counts as 1.
    """
    relative = np.swapaxes(a_X33, -1, -2) @ b_X33
    trace = np.trace(relative, axis1=-2, axis2=-1)
    cosine = np.clip((trace - 1) / 2, -1, 1)
    return np.arccos(cosine)
