"""Eyeballs, ears and bust of the stand-in head: pieces that are not joined to the skull."""

import numpy as np

from pipeline.geometry.curves import circle
from pipeline.geometry.mesh import fan, grid_faces
from pipeline.geometry.standin_openings import EYE_RADIUS

Piece = tuple[np.ndarray, np.ndarray]  # vertices (N, 3), triangles (F, 3)

EAR_COLUMNS = 14
# Of each ring of an ear, from the inner rim over the edge to the hollow: size, how far it stands out.
EAR_RINGS = (
    (0.55, -0.020),
    (0.96, 0.0),
    (1.06, 0.014),
    (0.97, 0.024),
    (0.72, 0.013),
    (0.40, 0.004),
)
BUST_COLUMNS = 28
# Neck and bust from inside the skull downwards, a ring a row: height, half width, half depth, z of the
# centre.
BUST = np.loadtxt(
    """
    -0.06   0.118  0.130  -0.030
    -0.13   0.126  0.138  -0.035
    -0.20   0.129  0.140  -0.045
    -0.26   0.130  0.138  -0.055
    -0.315  0.138  0.138  -0.065
    -0.36   0.160  0.144  -0.072
    -0.395  0.215  0.152  -0.076
    -0.425  0.305  0.164  -0.078
    -0.455  0.400  0.178  -0.078
    -0.495  0.475  0.195  -0.075
    -0.55   0.525  0.210  -0.070
    -0.66   0.555  0.225  -0.065
    -0.85   0.565  0.23   -0.06
    -1.15   0.57   0.235  -0.06
    """.splitlines()
)


def eyeball(centre_3: np.ndarray) -> Piece:
    """A sphere whose pole looks forward: 11 rings of 16, then the front and the back pole."""
    rings, columns = 11, 16
    polar = np.pi * np.arange(1, rings + 1) / (rings + 1)
    p, t = np.meshgrid(polar, circle(columns), indexing="ij")
    across = np.sin(p)
    x = across * np.cos(t)
    y = across * np.sin(t)
    sphere = np.stack([x, y, np.cos(p)], axis=-1)
    poles = [[0, 0, 1.0], [0, 0, -1.0]]
    directions = np.concatenate([sphere.reshape(-1, 3), poles])
    points = directions * EYE_RADIUS + centre_3
    # The poles come after the rings.
    front = rings * columns
    back = rings * columns + 1
    first = np.arange(columns)
    last = (rings - 1) * columns + first
    front_cap = fan(front, first, np.roll(first, -1))
    back_cap = fan(back, np.roll(last, -1), last)
    between = grid_faces(rings, columns)
    return points, np.concatenate([between, front_cap, back_cap])


def ear() -> Piece:
    """The ear at x > 0: a tilted shell, thick at the rim; 6 rings of 14, then the middle of the hollow."""
    angle = circle(EAR_COLUMNS)
    sine = np.sin(angle)
    # The outline is an oval, broader at its top than at its lobe.
    broader = 1 + 0.18 * sine
    backwards = -0.040 * np.cos(angle) * broader
    upwards = 0.075 * sine
    outline = np.column_stack([backwards, upwards])
    rows = []
    for scale, lift in EAR_RINGS:
        outwards = np.full(EAR_COLUMNS, lift)
        rows.append(np.column_stack([outline * scale, outwards]))
    hollow = [[0.0, 0.0, 0.002]]
    back, up, out = np.concatenate([*rows, hollow]).T
    # The shell stands off the head, more so at its back and top.
    at_back = 0.32 * np.clip(-back + 0.02, 0, None)
    at_top = 0.10 * np.clip(up, 0, None)
    x = 0.231 + 0.9 * out + at_back + at_top
    y = 0.045 + up - 0.20 * back
    z = 0.015 + back + 0.12 * up
    points = np.column_stack([x, y, z])
    rings = len(EAR_RINGS)
    shell = grid_faces(rings, EAR_COLUMNS)
    inner = (rings - 1) * EAR_COLUMNS + np.arange(EAR_COLUMNS)
    cap = fan(rings * EAR_COLUMNS, np.roll(inner, -1), inner)
    return points, np.concatenate([shell, cap])


def bust() -> Piece:
    """Neck and shoulders: the rings of BUST, open at both ends."""
    angle = circle(BUST_COLUMNS)
    side = np.sin(angle)
    front = np.cos(angle)
    across = np.sign(side) * np.abs(side) ** 0.9
    along = np.sign(front) * np.abs(front) ** 0.9
    is_front = np.sign(np.clip(front, 0, 1))
    rows = []
    for height, width, depth, middle in BUST:
        # The chest begins lower than the shoulders.
        shoulder = np.clip((width - 0.14) / 0.4, 0, 1)
        drop = 0.10 * shoulder * front**2 * is_front
        x = width * across
        y = height - drop * (height > -0.6)
        z = middle + depth * along
        rows.append(np.column_stack([x, y, z]))
    return np.concatenate(rows), grid_faces(len(BUST), BUST_COLUMNS)
