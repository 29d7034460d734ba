"""The back of a mesh, of which training has seen nothing: the skull of the head that was fitted to the photo.

Front and back of a head share the features of x and y. Training looks at the front, so that density alone
draws the face a second time at the back of the head. Behind SEAM the fitted head takes its place, as much
larger as the density stands out above it at the seam: hair that is seen at the sides goes on behind.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import trimesh
from scipy import ndimage
from scipy.spatial import cKDTree

from model.head.flame import SCALE, Flame
from pipeline.geometry.curves import ramp, smoothstep
from pipeline.geometry.label import head_vertices

# Metres from the origin of the head towards the face. The ears are about there, and training looks no
# further around the head.
SEAM = -0.02
# Metres over which density fades into the skull, and within which it counts as being at the seam.
FADE = 0.03
# Metres from the surface of the skull to where it is as dense as it gets.
DEPTH = 0.025
# No hair stands out further, metres.
THICKEST = 0.05
# Colours at the seam whose mean a point behind it takes: a few millimetres of hair or skin.
NEAREST = 50
SIDE = 64  # points of the distance field
POINTS = 200_000  # on the surface; dozens for each cell of a picture of it


@dataclass(frozen=True)
class Skull:
    """Metres from each point of a grid to the surface of a head, negative within, float64 (SIDE, SIDE, SIDE).

    The grid fills the box of the tri-planes, as that of `pipeline.avatar.mesh.surface`.
    """

    distance_NNN: np.ndarray

    def closed(self, volume_NNN: np.ndarray, level: float, box: float) -> np.ndarray:
        """`volume_NNN`, raw densities with the surface at `level`, with this skull behind SEAM.

        `box` is the side of the tri-planes' box in world units. In front of the seam nothing changes.
        """
        size = len(volume_NNN)
        distance = ndimage.zoom(self.distance_NNN, size / SIDE, order=1, mode="nearest", grid_mode=True)
        depths = _places(size, box)
        share = smoothstep(ramp(depths, SEAM - FADE / 2, FADE))
        grown = distance - _hair(volume_NNN > level, distance, depths)
        # Both are as dense within as the density ever gets, so that neither wins where they meet.
        densest = volume_NNN.max() - level
        skull = level - densest * (grown / DEPTH).clip(-1, 1)
        density = volume_NNN.clip(level - densest, level + densest)
        blended = share * density + (1 - share) * skull
        return np.where(share < 1, blended, volume_NNN).astype(volume_NNN.dtype)

    def painted(self, vertices_V3: np.ndarray, colours_V3: np.ndarray) -> np.ndarray:
        """Colours (uint8) of vertices (metres), in which those behind SEAM are those of the seam nearby.

        No picture has taught the decoder a colour there.
        """
        depths = vertices_V3[:, 2]
        share = smoothstep(ramp(depths, SEAM, FADE))
        rim = (depths > SEAM + FADE) & (depths < SEAM + 2 * FADE)
        hidden = share < 1
        if not rim.any() or not hidden.any():
            return colours_V3
        count = min(NEAREST, int(rim.sum()))
        _, nearest = cKDTree(vertices_V3[rim]).query(vertices_V3[hidden], k=range(1, count + 1))
        around = colours_V3[rim][nearest].mean(axis=1)
        painted = colours_V3.astype(np.float64)
        own = share[hidden, None]
        painted[hidden] = own * painted[hidden] + (1 - own) * around
        return painted.round().astype(np.uint8)


def skull_of(flame: Flame, label_437: np.ndarray, box: float) -> Skull:
    """The skull of the head with this label, in a box of side `box` (world units)."""
    vertices = head_vertices(flame, torch.from_numpy(label_437)[None])[0]
    head = trimesh.Trimesh(vertices.numpy() / SCALE, flame.faces.numpy(), process=False)
    inside = _inside(head.sample(POINTS, seed=0), box)
    cell = box / SCALE / SIDE
    # The surface lies half a cell before the first point on either side.
    outwards = ndimage.distance_transform_edt(~inside) - 0.5
    inwards = ndimage.distance_transform_edt(inside) - 0.5
    distance = np.where(inside, -inwards, outwards)
    # The cells of the grid would show as steps.
    smooth = ndimage.gaussian_filter(distance, 1.0)
    return Skull(cell * smooth)


def _places(size: int, box: float) -> np.ndarray:
    """Coordinates of `size` grid points along an axis, metres."""
    return ((np.arange(size) + 0.5) / size - 0.5) * box / SCALE


def _inside(points_P3: np.ndarray, box: float) -> np.ndarray:
    """Which grid points lie behind a surface for all viewers around and above it, bool (SIDE, SIDE, SIDE).

    A head model is no closed surface: it is open at the neck, the eyes and the mouth.
    """
    axis = _places(SIDE, box)
    cell = axis[1] - axis[0]
    axes = np.meshgrid(axis, axis, axis, indexing="ij")
    grid_M3 = np.stack(axes, axis=-1).reshape(-1, 3)
    inside = np.ones(len(grid_M3), bool)
    # From all sides and corners of a cube but the lower ones.
    for direction in product((-1, 0, 1), (0, 1), (-1, 0, 1)):
        if any(direction):
            inside &= _behind(grid_M3, points_P3, np.array(direction, float), cell)
    return inside.reshape(SIDE, SIDE, SIDE)


def _behind(
    grid_M3: np.ndarray,
    points_P3: np.ndarray,
    direction_3: np.ndarray,
    cell: float,
) -> np.ndarray:
    """Which grid points a viewer in `direction_3` does not see, as points of the surface hide them, (M,)."""
    towards = direction_3 / np.linalg.norm(direction_3)
    # The other two columns of an orthonormal basis span the viewer's picture.
    basis, _ = np.linalg.qr(np.column_stack([towards, np.eye(3)]))
    across = basis[:, 1:3]
    side = 2 * SIDE

    def pixels(places: np.ndarray) -> np.ndarray:
        columns, rows = np.floor(places @ across / cell).astype(int).T + SIDE
        return (columns.clip(0, side - 1) * side + rows.clip(0, side - 1)).astype(int)

    nearest = np.full(side * side, -np.inf)
    np.maximum.at(nearest, pixels(points_P3), points_P3 @ towards)
    return grid_M3 @ towards <= nearest[pixels(grid_M3)]


def _hair(solid_NNN: np.ndarray, distance_NNN: np.ndarray, depths_N: np.ndarray) -> float:
    """How far what is solid stands out above the skull at the seam, above the ears: a median, metres."""
    surface = solid_NNN & ~ndimage.binary_erosion(solid_NNN)
    there = np.abs(depths_N - SEAM) < FADE / 2
    above = depths_N > 0
    counts = surface & above[None, :, None] & there
    if not counts.any():
        return 0.0
    thickness = np.median(distance_NNN[counts])
    return float(np.clip(thickness, 0, THICKEST))
