"""A mesh that grows piece by piece, and the triangles of grids and of spheres."""

from dataclasses import dataclass, field

import numpy as np
from scipy.spatial import ConvexHull

OTHER_SIDE = np.array([-1.0, 1.0, 1.0])  # what mirrors a point


@dataclass
class Mesh:
    """Vertices and triangles.

    `part` names the vertices of each piece, `rings` ordered vertices around openings.
    """

    points: list[np.ndarray] = field(default_factory=list)  # (N, 3) float64 each
    faces: list[np.ndarray] = field(default_factory=list)  # (F, 3) each, counter-clockwise from outside
    part: dict[str, np.ndarray] = field(default_factory=dict)
    rings: dict[str, np.ndarray] = field(default_factory=dict)
    count: int = 0

    def add(
        self,
        name: str,
        points_N3: np.ndarray,
        faces_F3: np.ndarray | None = None,
    ) -> np.ndarray:
        """Append a piece, whose triangles count its own vertices from 0.

        Returns the numbers of its vertices.
        """
        after = self.count + len(points_N3)
        index = np.arange(self.count, after)
        self.points.append(np.asarray(points_N3, np.float64))
        if faces_F3 is not None:
            numbered = np.asarray(faces_F3) + self.count
            self.faces.append(numbered)
        self.part[name] = index
        self.count = after
        return index


def unit(points_N3: np.ndarray) -> np.ndarray:
    """The directions of points (..., 3)."""
    length = np.linalg.norm(points_N3, axis=-1, keepdims=True)
    return points_N3 / length


def mirror(points_N3: np.ndarray) -> np.ndarray:
    """The same points on the other side of the face."""
    return np.asarray(points_N3) * OTHER_SIDE


def hull_faces(directions_N3: np.ndarray) -> np.ndarray:
    """Triangles of the sphere through these unit directions, counter-clockwise seen from outside."""
    hull = ConvexHull(directions_N3)
    faces = hull.simplices
    corners = directions_N3[faces]
    a, b, c = corners.swapaxes(0, 1)
    outwards = a + b + c
    normal = np.cross(b - a, c - a)
    # The library turns its triangles either way.
    inwards = np.einsum("ij,ij->i", normal, outwards) < 0
    faces[inwards] = faces[inwards, ::-1]
    # The order of the triangles is fixed, whatever the library makes of it.
    order = np.lexsort(faces.T[::-1])
    return faces[order]


def grid_faces(rows: int, columns: int, closed: bool = True) -> np.ndarray:
    """Triangles of a rows x columns grid of vertices (row-major), closed around the columns."""
    quads = columns if closed else columns - 1
    # Every quad between two rows is cut along the diagonal from its lower left to its upper right corner.
    row, column = np.indices((rows - 1, quads))
    start = row * columns
    following = (column + 1) % columns
    a = start + column
    b = start + following
    below_a = a + columns
    below_b = b + columns
    first = np.stack([a, below_a, b], axis=-1)
    second = np.stack([b, below_a, below_b], axis=-1)
    triangles = np.stack([first, second])
    return triangles.reshape(-1, 3)


def fan(tip: int, first_N: np.ndarray, second_N: np.ndarray) -> np.ndarray:
    """Triangles (N, 3) that join one vertex to pairs of others, in this order."""
    tips = np.full_like(first_N, tip)
    return np.column_stack([tips, first_N, second_N])
