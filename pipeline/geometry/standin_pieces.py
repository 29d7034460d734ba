"""Eyeballs, ears and bust of the stand-in head: pieces that are not joined to the skull."""

import numpy as np

from pipeline.geometry.mesh import fan, grid_faces
from pipeline.geometry.standin_openings import EYE_RADIUS

Piece = tuple[np.ndarray, np.ndarray]  # vertices (N, 3), triangles (F, 3)

EAR_COLUMNS = 14
# Of each ring of an ear, from the inner rim over the edge to the hollow: size, how far it stands out.
EAR_RINGS = ((0.55, -0.020), (0.96, 0.0), (1.06, 0.014), (0.97, 0.024), (0.72, 0.013), (0.40, 0.004))
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
    turn = 2 * np.pi * np.arange(columns) / columns
    p, t = np.meshgrid(polar, turn, indexing="ij")
    across = np.sin(p)
    sphere = np.stack([across * np.cos(t), across * np.sin(t), np.cos(p)], axis=-1)
    poles = [[0, 0, 1.0], [0, 0, -1.0]]
    points = np.concatenate([sphere.reshape(-1, 3), poles]) * EYE_RADIUS + centre_3
    front = rings * columns
    back = rings * columns + 1
    first = np.arange(columns)
    last = (rings - 1) * columns + first
    front_cap = fan(front, first, np.roll(first, -1))
    back_cap = fan(back, np.roll(last, -1), last)
    return points, np.concatenate([grid_faces(rings, columns), front_cap, back_cap])


def ear() -> Piece:
    """The ear at x > 0: a tilted shell, thick at the rim; 6 rings of 14, then the middle of the hollow."""
    angle = 2 * np.pi * np.arange(EAR_COLUMNS) / EAR_COLUMNS
    backwards = -0.040 * np.cos(angle) * (1 + 0.18 * np.sin(angle))
    upwards = 0.075 * np.sin(angle)
    outline = np.column_stack([backwards, upwards])
    rows = []
    for scale, lift in EAR_RINGS:
        rows.append(np.column_stack([outline * scale, np.full(EAR_COLUMNS, lift)]))
    flat = np.concatenate([*rows, [[0.0, 0.0, 0.002]]])
    back = flat[:, 0]
    up = flat[:, 1]
    out = flat[:, 2]
    # The shell stands off the head, more so at its back and top.
    at_back = 0.32 * np.clip(-back + 0.02, 0, None)
    at_top = 0.10 * np.clip(up, 0, None)
    x = 0.231 + 0.9 * out + at_back + at_top
    y = 0.045 + up - 0.20 * back
    z = 0.015 + back + 0.12 * up
    rings = len(EAR_RINGS)
    inner = (rings - 1) * EAR_COLUMNS + np.arange(EAR_COLUMNS)
    hollow = fan(rings * EAR_COLUMNS, np.roll(inner, -1), inner)
    return np.column_stack([x, y, z]), np.concatenate([grid_faces(rings, EAR_COLUMNS), hollow])


def bust() -> Piece:
    """Neck and shoulders: the rings of BUST, open at both ends."""
    angle = 2 * np.pi * np.arange(BUST_COLUMNS) / BUST_COLUMNS
    side = np.sin(angle)
    front = np.cos(angle)
    across = np.sign(side) * np.abs(side) ** 0.9
    along = np.sign(front) * np.abs(front) ** 0.9
    rows = []
    for height, width, depth, middle in BUST:
        # The chest begins lower than the shoulders.
        shoulder = np.clip((width - 0.14) / 0.4, 0, 1)
        drop = 0.10 * shoulder * front**2 * np.sign(np.clip(front, 0, 1))
        y = height - drop * (height > -0.6)
        rows.append(np.column_stack([width * across, y, middle + depth * along]))
    return np.concatenate(rows), grid_faces(len(BUST), BUST_COLUMNS)
