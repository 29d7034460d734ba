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
    SIDES,
    add_lid_lining,
    add_mouth_bag,
    eye_centre,
    lid_chart,
    lid_ring,
    lip_ring,
)
from pipeline.geometry.standin_pieces import bust, ear, eyeball
from pipeline.geometry.standin_skull import BROW, CONTOUR, NOSE, Surface


def build() -> Mesh:
    """All pieces. Parts: skull, lining_*, bag, ear_*, bust, eye_*, where * is left or right.

    Rings: lid0_* to lid3_* and lip0 to lip4, innermost first; contour_*, brow_* and middle (chin and nose)
    hold the other landmarks.
    """
    mesh = Mesh()
    skull = _add_skull(mesh)
    for side in SIDES:
        add_lid_lining(mesh, skull, side)
    add_mouth_bag(mesh, skull)
    ear_points, ear_faces = ear()
    for side, sign in SIDES.items():
        # Mirrored triangles turn the other way.
        points = ear_points * [sign, 1, 1]
        mesh.add(f"ear_{side}", points, ear_faces[:, ::-sign])
    mesh.add("bust", *bust())
    for side in SIDES:
        centre = eye_centre(side)
        mesh.add(f"eye_{side}", *eyeball(centre))
    return mesh


def _add_skull(mesh: Mesh) -> np.ndarray:
    """Join the skull with its rings; returns its vertices."""
    surface = Surface()
    rings = _skull_rings(mesh, surface)
    fixed = unit(np.concatenate(rings.charts))
    rest = _fill(fixed)
    skull = np.concatenate([*rings.points, surface(rest)])
    directions = np.concatenate([fixed, rest])
    faces = hull_faces(directions)
    # A triangle between three vertices of a margin covers the opening.
    for hole in ("lid0_left", "lid0_right", "lip0"):
        margin = mesh.rings[hole]
        within = np.isin(faces, margin).all(axis=1)
        faces = faces[~within]
    mesh.add("skull", skull, faces)
    return skull


def _skull_rings(mesh: Mesh, surface: Surface) -> "_Rings":
    """Lids, lips and the chosen landmarks, in the order of the skull's first vertices."""
    rings = _Rings(mesh)
    for level, (scale, lift) in enumerate(LID_RINGS):
        lids = lid_ring(surface, scale, lift)
        chart = lid_chart(lids, level)
        rings.put(f"lid{level}_left", lids, chart)
        rings.put(f"lid{level}_right", mirror(lids), mirror(chart))
    for level, numbers in enumerate(LIP_RINGS):
        lips = lip_ring(surface, *numbers)
        rings.put(f"lip{level}", lips)
    half, chin = CONTOUR[:-1], CONTOUR[-1:]
    rings.put("contour_right", half)
    rings.put("brow_right", BROW)
    rings.put("contour_left", mirror(half))
    rings.put("brow_left", mirror(BROW))
    nostrils = mirror(NOSE[[4, 5]])
    middle = np.concatenate([chin, NOSE, nostrils])
    rings.put("middle", middle)
    return rings


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
        chart = ring_N3 if chart_N3 is None else chart_N3
        first = sum(map(len, self.points))
        self.mesh.rings[name] = first + np.arange(len(ring_N3))
        self.points.append(ring_N3)
        self.charts.append(chart)


def _fill(fixed_N3: np.ndarray) -> np.ndarray:
    """Directions that fill the sphere around the fixed ones, the same on both sides."""
    candidates = _candidates()
    spacing = _spacing(candidates)
    # What is almost in the middle goes there, as its mirror image would be too close.
    middle = candidates[:, 0] < 0.5 * spacing
    flattened = candidates[middle] * [0.0, 1.0, 1.0]
    candidates[middle] = unit(flattened)
    fixed = cKDTree(fixed_N3)
    distance, _ = fixed.query(candidates)
    apart = distance > 0.75 * spacing
    free = apart & ~_beside_eye(candidates)
    half = _thin_out(candidates[free], spacing[free])
    aside = half[:, 0] > 0
    return np.concatenate([half, mirror(half[aside])])


def _beside_eye(directions_N3: np.ndarray) -> np.ndarray:
    """Whether directions (N,) go next to the eye, where only rings are, so that its lids move as one."""
    x, y, z = EYE_CENTRE
    plane = z + 0.04
    ahead = np.maximum(directions_N3[:, 2:], 0.2)
    front = directions_N3 * plane / ahead
    across = (front[:, 0] - x) / 0.084
    up = (front[:, 1] - y) / 0.050
    return np.hypot(across, up) < 1


def _thin_out(candidates_N3: np.ndarray, spacing_N: np.ndarray) -> np.ndarray:
    """Those candidates that have no chosen one within their spacing; the finest places choose first."""
    left = np.ones(len(candidates_N3), bool)
    kept = []
    for index in np.argsort(spacing_N, kind="stable"):
        if left[index]:
            chosen = candidates_N3[index]
            kept.append(chosen)
            squares = (candidates_N3 - chosen) ** 2
            left &= squares.sum(1) > spacing_N**2
    return np.array(kept)


def _candidates() -> np.ndarray:
    """Directions at x >= 0, row by row, finer than any spacing."""
    step = np.radians(1.5)
    degrees = np.arange(-88.5, 90, 1.5)
    rows = []
    for elevation in np.radians(degrees):
        across = np.cos(elevation)
        steps = np.ceil(np.pi * across / step)
        longitude = np.linspace(0, np.pi, int(steps) + 1)
        # On a cylinder of radius 1 first, then scaled onto the sphere.
        height = np.full_like(longitude, np.tan(elevation))
        sine = np.sin(longitude)
        cosine = np.cos(longitude)
        row = np.column_stack([sine, height, cosine])
        rows.append(row * across)
    return np.concatenate(rows)


def _spacing(directions_N3: np.ndarray) -> np.ndarray:
    """Wanted distance between neighbours, radians: small in the face, smaller on the nose."""
    x, y, z = directions_N3.T
    face_middle = unit(np.array([0.0, -0.05, 1.0]))
    cosine = np.clip(directions_N3 @ face_middle, -1, 1)
    angle = np.arccos(cosine)
    face = np.exp(-((angle / 0.85) ** 4))
    across = (x / 0.20) ** 2
    up = ((y - 0.03) / 0.20) ** 2
    from_nose = across + up
    near_nose = np.exp(-(from_nose**2))
    nose = near_nose * (z > 0)
    degrees = 9.0 - 4.9 * face - 1.5 * nose
    return np.radians(degrees)


def landmark_vertices(mesh: Mesh) -> np.ndarray:
    """The vertices (68,) that are the iBUG landmarks, where face mesh models find them."""
    rings = mesh.rings
    middle = rings["middle"]
    chin = middle[:1]
    bridge = middle[1:5]
    # iBUG goes from the person's right to the left; our rings of the left side are mirror images.
    pieces = [
        rings["contour_right"],
        chin,
        rings["contour_left"][::-1],
        rings["brow_right"],
        rings["brow_left"][::-1],
        bridge,
        middle[[5, 6, 7, 9, 8]],
        rings["lid0_right"][[0, 3, 5, 8, 11, 13]],
        rings["lid0_left"][[8, 5, 3, 0, 13, 11]],
        rings["lip2"][[10, 8, 6, 5, 4, 2, 0, 18, 16, 15, 14, 12]],
        rings["lip0"][[10, 7, 5, 3, 0, 17, 15, 13]],
    ]
    return np.concatenate(pieces)
