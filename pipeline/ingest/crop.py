"""The official framing of a face (facts 5.2): a square around it, from five points, without rotation.

A crop is three numbers (scale, tx, ty): aligned = scale * source + (tx, ty). Source points are pixels of the
picture, the centre of pixel i being at i + 0.5; aligned ones are fractions of the square. Both have y down.
"""

import math

import numpy as np
from PIL import Image

# Pupils, nose tip and mouth corners of the mean face, left to right in the image, y up. The origin is the
# centre of the square.
TEMPLATE_53 = np.array(
    [
        [-0.311, 0.190, 0.534],
        [0.310, 0.190, 0.532],
        [0.003, -0.146, 0.952],
        [-0.252, -0.481, 0.624],
        [0.248, -0.481, 0.622],
    ]
)
# Length 1 of the template as a fraction of the square.
UNIT = 180.0 / 512.0
# From the chin to the top of the forehead is where the mesh ends; the crown lies this share of it further up.
CHIN, FOREHEAD, CROWN = 152, 10, 0.3
# Points a side of the grid that measures how much of a head lies outside of its picture.
GRID = 64
# From this fraction of the square on, a step between neighbouring frames is a cut in the film and not a
# movement.
JUMP = 0.25
# Seconds over which is smoothed. The size of a head in the picture changes more slowly than its place.
SIGMA_SCALE = 0.4
SIGMA_SHIFT = 0.12


def five_points(mesh_478: np.ndarray) -> np.ndarray:
    """Pupils, nose tip and mouth corners, (5, 2), of the 478 mesh points (478, 2 or 3).

    The nose tip of the official landmarks lies half-way between mesh points 1 and 4. On the 16 official
    portraits the median vertical shift of our framing against theirs is then 0.2 % of the picture; with
    either point alone it is 1.5 or 1.7 %.
    """
    points = mesh_478[:, :2]
    nose = (points[1] + points[4]) / 2
    return np.stack([points[468], points[473], nose, points[61], points[291]])


def fit_crop(points_52: np.ndarray) -> np.ndarray:
    """The crop, (3,) float64, for five points in source pixels: an affine camera fitted by least squares."""
    y_down = TEMPLATE_53 * [1.0, -1.0, 1.0]
    design = np.concatenate([y_down, np.ones((5, 1))], axis=1)
    wanted = np.asarray(points_52, np.float64)
    solution_42 = np.linalg.lstsq(design, wanted, rcond=None)[0]
    pixels_a_unit = np.linalg.norm(solution_42[:3], axis=0).mean()
    scale = UNIT / pixels_a_unit
    shift = 0.5 - scale * solution_42[3]
    return np.array([scale, *shift])


def to_aligned(points: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """Source points (..., 2 or 3) in pixels to fractions of the square; depth is only scaled."""
    aligned = np.asarray(points, np.float64) * crop[0]
    aligned[..., :2] += crop[1:]
    return aligned


def widen(crop: np.ndarray, factor: float) -> np.ndarray:
    """The crop of a square `factor` times as large around the same centre."""
    shift = (crop[1:] - 0.5) / factor + 0.5
    return np.array([crop[0] / factor, *shift])


def cut(
    image: np.ndarray,
    crop: np.ndarray,
    size: int,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> np.ndarray:
    """The square out of uint8 (H, W, 3) or (H, W), resized to `size` with antialiasing.

    Beyond the border of the image its last pixels are repeated.
    """
    left, top = -crop[1:] / crop[0]
    side = 1.0 / crop[0]
    # How far the filter reaches over the edge of the square.
    margin = 3.0 * max(1.0, side / size) + 1.0
    columns = _pixels(left - margin, left + side + margin)
    rows = _pixels(top - margin, top + side + margin)
    strip = image.take(rows, axis=0, mode="clip")
    patch = strip.take(columns, axis=1, mode="clip")
    x = left - columns[0]
    y = top - rows[0]
    box = (x, y, x + side, y + side)
    square = Image.fromarray(patch).resize((size, size), resample, box=box)
    return np.array(square)


def inside(
    crop: np.ndarray,
    width: int,
    height: int,
    size: int,
) -> np.ndarray:
    """How much of each pixel of the square lies within the picture, (size, size) float64 in [0, 1]."""
    edges = np.arange(size + 1) / size
    covered = []
    for shift, side in ((crop[2], height), (crop[1], width)):
        places = np.clip((edges - shift) / crop[0], 0, side)
        covered.append(np.diff(places) * crop[0] * size)
    rows, columns = covered
    return np.outer(rows, columns)


def outside_share(
    mesh_478: np.ndarray,
    width: int,
    height: int,
) -> float:
    """The share of a head that lies beyond the edge of its picture, in [0, 1].

    The head is an ellipse in the picture: from the chin to the crown, as wide as the mesh. `mesh_478` is in
    pixels of the picture, (478, 2 or 3).
    """
    points = mesh_478[:, :2]
    upwards = points[FOREHEAD] - points[CHIN]
    up = upwards / np.linalg.norm(upwards)
    right = np.array([-up[1], up[0]])
    across = points @ right
    low, high = points[CHIN] @ up, (points[CHIN] + (1 + CROWN) * upwards) @ up
    ticks = (np.arange(GRID) + 0.5) / GRID * 2 - 1
    x, y = np.meshgrid(ticks, ticks)
    disc = x**2 + y**2 <= 1
    along_right = (across.max() + across.min() + np.ptp(across) * x[disc]) / 2
    along_up = (high + low + (high - low) * y[disc]) / 2
    places = along_right[:, None] * right + along_up[:, None] * up
    within = (places >= 0) & (places <= [width, height])
    return float(1 - within.all(axis=1).mean())


def _pixels(start: float, end: float) -> np.ndarray:
    """The numbers of the pixels that an interval touches."""
    return np.arange(math.floor(start), math.ceil(end))


def smooth_crops(crops_N3: np.ndarray, seconds_N: np.ndarray) -> np.ndarray:
    """The crops of the frames of a clip, (N, 3), without their jitter.

    A Gaussian over time with a straight line fitted under it has no lag, not even at the ends, and is exact
    for even motion; quick movement of the head stays visible in the frame. It never reaches over a cut in the
    film. The official code has a forward filter for this, switched off (facts 5.2).
    """
    side_N = 1.0 / crops_N3[:, 0]
    centre_N2 = (0.5 - crops_N3[:, 1:]) * side_N[:, None]
    moves = np.diff(centre_N2, axis=0)
    steps = np.linalg.norm(moves, axis=1)
    smaller = np.minimum(side_N[1:], side_N[:-1])
    log_side_N = np.log(side_N)
    growth = np.abs(np.diff(log_side_N))
    jumps = (steps > JUMP * smaller) | (growth > JUMP)
    starts = np.flatnonzero(jumps) + 1
    frames = np.arange(len(side_N))
    smooth_side_N = side_N.copy()
    smooth_centre_N2 = centre_N2.copy()
    for part in np.split(frames, starts):
        seconds = seconds_N[part]
        log_side = np.log(side_N[part])[:, None]
        smooth_log_side = _smooth(log_side, seconds, SIGMA_SCALE)
        smooth_side_N[part] = np.exp(smooth_log_side[:, 0])
        smooth_centre_N2[part] = _smooth(centre_N2[part], seconds, SIGMA_SHIFT)
    scale_N1 = 1.0 / smooth_side_N[:, None]
    shift_N2 = 0.5 - smooth_centre_N2 / smooth_side_N[:, None]
    return np.concatenate([scale_N1, shift_N2], axis=1)


def _smooth(
    values_NC: np.ndarray,
    seconds_N: np.ndarray,
    sigma: float,
) -> np.ndarray:
    """The value, at each frame's time, of the line that fits the values around it best; Gaussian weights."""
    offset_NN = seconds_N[None, :] - seconds_N[:, None]
    weight_NN = np.exp(-0.5 * (offset_NN / sigma) ** 2)
    weight_NN /= weight_NN.sum(axis=1, keepdims=True)
    weighted_NN = weight_NN * offset_NN
    mean_N1 = weighted_NN.sum(axis=1, keepdims=True)
    centred_NN = offset_NN - mean_N1
    squares_NN = weight_NN * centred_NN**2
    spread_N1 = squares_NN.sum(axis=1, keepdims=True)
    mean_NC = weight_NN @ values_NC
    covariance_NC = (weight_NN * centred_NN) @ values_NC
    # One frame alone has no spread, and no slope.
    slope_NC = covariance_NC / np.maximum(spread_N1, 1e-12)
    return mean_NC - slope_NC * mean_N1
