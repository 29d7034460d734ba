"""The official framing of a face (facts 5.2): a square around it, found from five points, without rotation.

A crop is three numbers (scale, tx, ty): aligned = scale * source + (tx, ty), where source is in pixels of the picture (the centre of pixel
i is at i + 0.5) and aligned in fractions of the square, both with y down.
"""

import math

import numpy as np
from PIL import Image

# Pupils, nose tip and mouth corners of the mean face, left to right in the image, y up; the origin is the centre of the square.
TEMPLATE_53 = np.array(
    [
        [-0.311, 0.190, 0.534],
        [0.310, 0.190, 0.532],
        [0.003, -0.146, 0.952],
        [-0.252, -0.481, 0.624],
        [0.248, -0.481, 0.622],
    ]
)
UNIT = 180.0 / 512.0  # length 1 of the template as a fraction of the square
JUMP = 0.25  # of the square between neighbouring frames: a cut in the film, not a movement
SIGMA_SCALE = 0.4  # seconds; the size of a head in the picture changes slowly
SIGMA_SHIFT = 0.12


def five_points(mesh_478: np.ndarray) -> np.ndarray:
    """Pupils, nose tip, mouth corners (5, 2) of the 478 mesh points (478, 2 or 3).

    The nose tip of the official landmarks lies half-way between mesh points 1 and 4: on the 16 official portraits the median vertical shift
    of our framing against theirs is then 0.2 % of the picture, with either point alone it is 1.5 or 1.7 %.
    """
    points = mesh_478[:, :2]
    return np.stack([points[468], points[473], (points[1] + points[4]) / 2, points[61], points[291]])


def fit_crop(points_52: np.ndarray) -> np.ndarray:
    """The crop (3,) float64 for five points in source pixels: shift and size of an affine camera fitted by least squares."""
    design = np.concatenate([TEMPLATE_53 * [1.0, -1.0, 1.0], np.ones((5, 1))], axis=1)
    solution_42 = np.linalg.lstsq(design, np.asarray(points_52, np.float64), rcond=None)[0]
    pixels_a_unit = np.linalg.norm(solution_42[:3], axis=0).mean()
    scale = UNIT / pixels_a_unit
    return np.array([scale, *(0.5 - scale * solution_42[3])])


def to_aligned(points: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """Source points (..., 2 or 3) in pixels to fractions of the square; a third coordinate (depth) is scaled only."""
    aligned = np.asarray(points, np.float64) * crop[0]
    aligned[..., :2] += crop[1:]
    return aligned


def widen(crop: np.ndarray, factor: float) -> np.ndarray:
    """The crop of a square `factor` times as large around the same centre."""
    return np.array([crop[0] / factor, *((crop[1:] - 0.5) / factor + 0.5)])


def cut(
    image: np.ndarray, crop: np.ndarray, size: int, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> np.ndarray:
    """The square out of uint8 (H, W, 3) or (H, W), resized to `size` with antialiasing; beyond the border its last pixels are repeated."""
    left, top = -crop[1:] / crop[0]
    side = 1.0 / crop[0]
    margin = 3.0 * max(1.0, side / size) + 1.0  # reach of the filter
    columns = np.arange(math.floor(left - margin), math.ceil(left + side + margin))
    rows = np.arange(math.floor(top - margin), math.ceil(top + side + margin))
    patch = image.take(rows, axis=0, mode="clip").take(columns, axis=1, mode="clip")
    x, y = left - columns[0], top - rows[0]
    return np.array(Image.fromarray(patch).resize((size, size), resample, box=(x, y, x + side, y + side)))


def smooth_crops(crops_N3: np.ndarray, seconds_N: np.ndarray) -> np.ndarray:
    """The crops of the frames of a clip, (N, 3), with their jitter taken out; quick movement of the head then stays visible in the frame.

    A Gaussian over time with a straight line fitted under it: no lag, not even at the ends, and exact for even motion. It never reaches
    over a jump, which is a cut in the film. The official code has a forward filter for this, switched off (facts 5.2).
    """
    side = 1.0 / crops_N3[:, 0]
    centre_N2 = (0.5 - crops_N3[:, 1:]) * side[:, None]
    jumps = np.linalg.norm(np.diff(centre_N2, axis=0), axis=1) > JUMP * np.minimum(side[1:], side[:-1])
    jumps |= np.abs(np.diff(np.log(side))) > JUMP
    side, centre_N2 = side.copy(), centre_N2.copy()
    for part in np.split(np.arange(len(side)), np.flatnonzero(jumps) + 1):
        side[part] = np.exp(_smooth(np.log(side[part])[:, None], seconds_N[part], SIGMA_SCALE)[:, 0])
        centre_N2[part] = _smooth(centre_N2[part], seconds_N[part], SIGMA_SHIFT)
    return np.concatenate([1.0 / side[:, None], 0.5 - centre_N2 / side[:, None]], axis=1)


def _smooth(values_NC: np.ndarray, seconds_N: np.ndarray, sigma: float) -> np.ndarray:
    offset_NN = seconds_N[None, :] - seconds_N[:, None]
    weight_NN = np.exp(-0.5 * (offset_NN / sigma) ** 2)
    weight_NN /= weight_NN.sum(axis=1, keepdims=True)
    mean_N1 = (weight_NN * offset_NN).sum(axis=1, keepdims=True)
    spread_N1 = (weight_NN * (offset_NN - mean_N1) ** 2).sum(axis=1, keepdims=True)
    mean_NC = weight_NN @ values_NC
    slope_NC = (weight_NN * (offset_NN - mean_N1)) @ values_NC / np.maximum(spread_N1, 1e-12)
    return mean_NC - slope_NC * mean_N1
