"""The surface of the stand-in head: where its vertices are and how they are joined.

World units, the neck joint at 0. The skull is a set of directions, dense around eyes, nose and mouth,
triangulated by their convex hull on the sphere. Eyelids and lips are rings of directions around holes;
eyeballs, mouth bag, ears and bust are pieces of their own.
"""

import numpy as np
from scipy.spatial import cKDTree

from pipeline.geometry.mesh import Mesh, hull_faces, mirror, unit
from pipeline.geometry.standin_openings import (
    EYE_CENTRE,
    LID_RINGS,
    LIP_RINGS,
    add_lid_lining,
    add_mouth_bag,
    lid_chart,
    lid_ring,
    lip_ring,
)
from pipeline.geometry.standin_pieces import bust, ear, eyeball
from pipeline.geometry.standin_skull import BROW, CONTOUR, NOSE, Surface

SIDES = {"right": -1, "left": 1}  # of the person; the sign of x there


def build() -> Mesh:
    """All pieces. Parts: skull, lining_*, bag, ear_*, bust, eye_*, where * is left or right.

    Rings: lid0_* to lid3_* and lip0 to lip4, innermost first; contour_*, brow_* and middle (chin and nose)
    hold the other landmarks.
    """
    mesh = Mesh()
    skull = _add_skull(mesh)
    for side, sign in SIDES.items():
        add_lid_lining(mesh, skull, side, sign)
    add_mouth_bag(mesh, skull)
    ear_points, ear_faces = ear()
    for side, sign in SIDES.items():
        mesh.add(f"ear_{side}", ear_points * [sign, 1, 1], ear_faces[:, ::-sign])
    mesh.add("bust", *bust())
    for side, sign in SIDES.items():
        mesh.add(f"eye_{side}", *eyeball(EYE_CENTRE * [sign, 1, 1]))
    return mesh


def _add_skull(mesh: Mesh) -> np.ndarray:
    """Join the skull with its rings; returns its vertices."""
    surface = Surface()
    rings = _Rings(mesh)
    for level, (scale, lift) in enumerate(LID_RINGS):
        lids = lid_ring(surface, scale, lift)
        chart = lid_chart(lids, level)
        rings.put(f"lid{level}_left", lids, chart)
        rings.put(f"lid{level}_right", mirror(lids), mirror(chart))
    for level, numbers in enumerate(LIP_RINGS):
        rings.put(f"lip{level}", lip_ring(surface, *numbers))
    for side, place in (("right", np.asarray), ("left", mirror)):
        rings.put(f"contour_{side}", place(CONTOUR[:-1]))
        rings.put(f"brow_{side}", place(BROW))
    rings.put("middle", np.concatenate([CONTOUR[-1:], NOSE, mirror(NOSE[[4, 5]])]))
    fixed = unit(np.concatenate(rings.charts))
    rest = _fill(fixed)
    skull = np.concatenate([*rings.points, surface(rest)])
    faces = hull_faces(np.concatenate([fixed, rest]))
    # A triangle between three vertices of a margin covers the opening.
    for hole in ("lid0_left", "lid0_right", "lip0"):
        within = np.isin(faces, mesh.rings[hole]).all(axis=1)
        faces = faces[~within]
    mesh.add("skull", skull, faces)
    return skull


class _Rings:
    """The vertices that the skull must have, ring by ring, and where its triangulation sees them."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.points: list[np.ndarray] = []
        self.charts: list[np.ndarray] = []

    def put(
        self,
        name: str,
        ring_N3: np.ndarray,
        chart_N3: np.ndarray | None = None,
    ) -> None:
        first = sum(map(len, self.points))
        self.mesh.rings[name] = first + np.arange(len(ring_N3))
        self.points.append(ring_N3)
        self.charts.append(ring_N3 if chart_N3 is None else chart_N3)


def _fill(fixed_N3: np.ndarray) -> np.ndarray:
    """Directions that fill the sphere around the fixed ones, the same on both sides."""
    candidates = _candidates()
    spacing = _spacing(candidates)
    # What is almost in the middle goes there, as its mirror image would be too close.
    middle = candidates[:, 0] < 0.5 * spacing
    candidates[middle] = unit(candidates[middle] * [0.0, 1.0, 1.0])
    # Next to an eye there are rings alone, so that its lids move as one.
    front = candidates * (EYE_CENTRE[2] + 0.04) / np.maximum(candidates[:, 2:], 0.2)
    across = (front[:, 0] - EYE_CENTRE[0]) / 0.084
    up = (front[:, 1] - EYE_CENTRE[1]) / 0.050
    lids = np.hypot(across, up) < 1
    distance, _ = cKDTree(fixed_N3).query(candidates)
    free = (distance > 0.75 * spacing) & ~lids
    half = _thin_out(candidates[free], spacing[free])
    return np.concatenate([half, mirror(half[half[:, 0] > 0])])


def _thin_out(candidates_N3: np.ndarray, spacing_N: np.ndarray) -> np.ndarray:
    """Those candidates that have no chosen one within their spacing; the finest places choose first."""
    left = np.ones(len(candidates_N3), bool)
    kept = []
    for index in np.argsort(spacing_N, kind="stable"):
        if left[index]:
            kept.append(candidates_N3[index])
            squares = ((candidates_N3 - candidates_N3[index]) ** 2).sum(1)
            left &= squares > spacing_N**2
    return np.array(kept)


def _candidates() -> np.ndarray:
    """Directions at x >= 0, row by row, finer than any spacing."""
    step = np.radians(1.5)
    rows = []
    for elevation in np.radians(np.arange(-88.5, 90, 1.5)):
        count = int(np.ceil(np.pi * np.cos(elevation) / step)) + 1
        longitude = np.linspace(0, np.pi, count)
        height = np.full_like(longitude, np.tan(elevation))
        row = np.column_stack([np.sin(longitude), height, np.cos(longitude)])
        rows.append(row * np.cos(elevation))
    return np.concatenate(rows)


def _spacing(directions_N3: np.ndarray) -> np.ndarray:
    """Wanted distance between neighbours, radians: small in the face, smaller on the nose."""
    x, y, z = directions_N3.T
    towards_face = directions_N3 @ unit(np.array([0.0, -0.05, 1.0]))
    angle = np.arccos(np.clip(towards_face, -1, 1))
    face = np.exp(-((angle / 0.85) ** 4))
    from_nose = (x / 0.20) ** 2 + ((y - 0.03) / 0.20) ** 2
    nose = np.exp(-(from_nose**2)) * (z > 0)
    return np.radians(9.0 - 4.9 * face - 1.5 * nose)


def landmark_vertices(mesh: Mesh) -> np.ndarray:
    """The vertices (68,) that are the iBUG landmarks, where face mesh models find them."""
    rings = mesh.rings
    middle = mesh.rings["middle"]
    # iBUG goes from the person's right to the left; our rings of the left side are mirror images.
    contour = [rings["contour_right"], middle[:1], rings["contour_left"][::-1]]
    brows = [rings["brow_right"], rings["brow_left"][::-1]]
    nose = [middle[1:5], middle[[5, 6, 7, 9, 8]]]
    eyes = [rings["lid0_right"][[0, 3, 5, 8, 11, 13]], rings["lid0_left"][[8, 5, 3, 0, 13, 11]]]
    outer = rings["lip2"][[10, 8, 6, 5, 4, 2, 0, 18, 16, 15, 14, 12]]
    inner = rings["lip0"][[10, 7, 5, 3, 0, 17, 15, 13]]
    return np.concatenate([*contour, *brows, *nose, *eyes, outer, inner])
