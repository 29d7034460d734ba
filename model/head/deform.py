"""Deformations of space that follow the head mesh: the neck field of Psi and the part-wise deformation of GenHead (facts 2.7 and 3.2).

Closest triangles and vertices are found exactly in plain PyTorch. Points are world units, (B, N, 3); nothing here has a gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.head.flame import Flame

CHUNK = 1 << 20  # pairs of points and triangles or vertices held at once
FINE, COARSE = 24, 8  # cells a side of the neck field's grids
PARTS = ("eyes", "face", "mouth")


def closest_on_triangles(points_P3: Tensor, corners_P33: Tensor) -> tuple[Tensor, Tensor]:
    """Barycentric coordinates (P, 3) of the nearest point of each triangle to its own point, and the squared distance (P,).

    The nearest point is the projection on the plane if that lies inside, else the nearest of three points on the edges; a triangle
    without area, or so thin that rounding decides where its plane lies, is handled by its edges alone.
    """
    edge = corners_P33.roll(-1, 1) - corners_P33  # edge i runs from corner i to corner i + 1
    to_point = points_P3[:, None] - corners_P33
    along = ((to_point * edge).sum(-1) / edge.square().sum(-1).clamp_min(1e-30)).clamp(0, 1)
    on_edge = (to_point - along[..., None] * edge).square().sum(-1)
    best, which = on_edge.min(1)
    t = along.gather(1, which[:, None])[:, 0]
    rows = torch.arange(len(points_P3), device=points_P3.device)
    weights = torch.zeros_like(points_P3)
    weights[rows, which] = 1 - t
    weights[rows, (which + 1) % 3] = t

    normal = torch.linalg.cross(edge[:, 0], -edge[:, 2])
    area2 = normal.square().sum(-1)
    # Barycentric coordinate i belongs to the sub-triangle opposite to corner i.
    inner = (
        torch.linalg.cross(edge, to_point).mul(normal[:, None]).sum(-1).roll(-1, 1)
        / area2.clamp_min(1e-30)[:, None]
    )
    inside = (inner >= 0).all(1) & _has_plane(corners_P33)
    height2 = (to_point[:, 0] * normal).sum(-1).square() / area2.clamp_min(1e-30)
    return torch.where(inside[:, None], inner, weights), torch.where(inside, height2, best)


def _has_plane(corners_P33: Tensor) -> Tensor:
    """Whether triangles are high enough over their longest edge, a few ten-thousandths of it, for float32 to know their plane, (P,)."""
    edge = corners_P33.roll(-1, 1) - corners_P33
    area2 = torch.linalg.cross(edge[:, 0], -edge[:, 2]).square().sum(-1)
    return area2 > 1e-7 * edge.square().sum(-1).amax(1).square()


def closest_on_mesh(
    points_N3: Tensor, vertices_V3: Tensor, faces_F3: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The mesh's nearest point to each point: face (N,) int64, barycentric coordinates (N, 3), squared distance (N,). Exact.

    Of equally near faces the one with the lowest index is taken.
    """
    corners_F33 = vertices_V3[faces_F3]
    centre_F3 = corners_F33.mean(1)
    radius_F = (corners_F33 - centre_F3[:, None]).norm(dim=-1).amax(1)
    faces, weights, distances = [], [], []
    for points in points_N3.split(max(1, CHUNK // len(faces_F3))):
        to_centre = torch.cdist(points, centre_F3, compute_mode="donot_use_mm_for_euclid_dist")
        # A triangle lies within its radius of its centre: it can only win if it comes as near as the best guarantee.
        bound = (to_centre + radius_F).amin(1, keepdim=True)
        row, face = (to_centre - radius_F <= bound * (1 + 1e-5) + 1e-7).nonzero(as_tuple=True)
        weight, distance = closest_on_triangles(points[row], corners_F33[face])
        nearest = distance.new_full((len(points),), torch.inf).scatter_reduce(0, row, distance, "amin")
        winner = torch.where(distance == nearest[row], torch.arange(len(row), device=row.device), len(row))
        first = winner.new_full((len(points),), len(row)).scatter_reduce(0, row, winner, "amin")
        faces.append(face[first])
        weights.append(weight[first])
        distances.append(nearest)
    return torch.cat(faces), torch.cat(weights), torch.cat(distances)


def nearest_vertices(points_BN3: Tensor, vertices_BV3: Tensor, count: int) -> Tensor:
    """Indices (B, N, count) of the nearest vertices, nearest first."""
    height2_B1V = vertices_BV3.square().sum(-1)[:, None]
    indices = []
    for points in points_BN3.split(max(1, CHUNK // vertices_BV3[..., 0].numel()), dim=1):
        # The squared distance less what is the same for all vertices of a point.
        score = torch.baddbmm(height2_B1V, points, vertices_BV3.mT, alpha=-2)
        # One minimum is several times faster than a list of one.
        indices.append(
            score.argmin(-1, keepdim=True) if count == 1 else score.topk(count, dim=-1, largest=False).indices
        )
    return torch.cat(indices, 1)


def cell_centres(cells: int, low_3: Tensor, high_3: Tensor) -> Tensor:
    """Centres of the cells of a grid between two corners, (cells^3, 3); x varies slowest."""
    step = (torch.arange(cells, device=low_3.device, dtype=low_3.dtype) + 0.5) / cells
    fraction = torch.stack(torch.meshgrid(step, step, step, indexing="ij"), dim=-1).view(-1, 3)
    return low_3 + fraction * (high_3 - low_3)


def look_up(grid_BCGGG: Tensor, points_BN3: Tensor, low_3: Tensor, high_3: Tensor, padding: str) -> Tensor:
    """Trilinear values (B, N, C) of a grid whose axes are x, y, z and whose values stand at the cell centres between two corners."""
    cells = grid_BCGGG.shape[-1]
    place = ((points_BN3 - low_3) / (high_3 - low_3) * 2 - 1) * (cells / (cells - 1))
    place = place.flip(-1)[:, :, None, None]  # grid_sample wants the last axis first
    return F.grid_sample(grid_BCGGG, place, mode="bilinear", padding_mode=padding, align_corners=True)[
        ..., 0, 0
    ].transpose(1, 2)


class NeckField:
    """Undoes the neck rotation of the points of space: posed -> un-posed (facts 2.7).

    `fine_B3GGG` and `coarse_B3GGG` are offsets at the cell centres of a cube of side `box` around the origin, axes x, y, z;
    `distance2_B1GGG` squared distances to the posed mesh on the fine grid. Near the mesh the fine offset holds, far from it the
    smoothed coarse one. The batch may be 1 for all points.
    """

    def __init__(self, fine_B3GGG: Tensor, distance2_B1GGG: Tensor, coarse_B3GGG: Tensor, box: float = 1.3):
        for _ in range(2):
            coarse_B3GGG = F.avg_pool3d(
                F.pad(coarse_B3GGG, (1, 1, 1, 1, 1, 1), mode="replicate"), 3, stride=1
            )
        self.fine, self.coarse = torch.cat([fine_B3GGG, distance2_B1GGG], dim=1), coarse_B3GGG
        self.low = fine_B3GGG.new_full((3,), -box / 2)

    @classmethod
    @torch.no_grad()
    def between(
        cls, posed_BV3: Tensor, unposed_BV3: Tensor, faces_F3: Tensor, box: float = 1.3
    ) -> "NeckField":
        """The field between two poses of the (simplified) mesh."""
        low = posed_BV3.new_full((3,), -box / 2)
        results = []
        for cells in (FINE, COARSE):
            points = cell_centres(cells, low, -low)
            moved = [
                surface_offset(points, posed, unposed, faces_F3)
                for posed, unposed in zip(posed_BV3, unposed_BV3, strict=True)
            ]
            offset, distance = (torch.stack(part) for part in zip(*moved, strict=True))
            results.append(
                (
                    offset.transpose(1, 2).reshape(-1, 3, cells, cells, cells),
                    distance.view(-1, 1, cells, cells, cells),
                )
            )
        return cls(*results[0], results[1][0], box)

    @torch.no_grad()
    def __call__(self, points_BN3: Tensor) -> Tensor:
        batch = len(points_BN3)
        fine = look_up(self.fine.expand(batch, -1, -1, -1, -1), points_BN3, self.low, -self.low, "zeros")
        coarse = look_up(self.coarse.expand(batch, -1, -1, -1, -1), points_BN3, self.low, -self.low, "zeros")
        weight = torch.exp(-1000.0 * (fine[..., 3:] - 3e-3).relu())
        return points_BN3 + coarse + weight * (fine[..., :3] - coarse)


def surface_offset(
    points_N3: Tensor, posed_V3: Tensor, unposed_V3: Tensor, faces_F3: Tensor
) -> tuple[Tensor, Tensor]:
    """How points move with their nearest triangle from one pose to the other: offsets (N, 3) and squared distances (N,).

    The foot point keeps its barycentric coordinates, the rest turns with the triangle. Where the foot lies inside its triangle this
    is the official surface field (barycentric projection plus signed offset along the normal); beyond an edge it stays rigid. A triangle
    without area says nothing about a turn: there the points only move along.
    """
    face, weight, distance = closest_on_mesh(points_N3, posed_V3, faces_F3)
    posed, unposed = posed_V3[faces_F3[face]], unposed_V3[faces_F3[face]]
    foot, new_foot = ((corners * weight[..., None]).sum(1) for corners in (posed, unposed))
    turn = _frames(unposed) @ _frames(posed).transpose(1, 2)
    still = torch.eye(3, dtype=turn.dtype, device=turn.device)
    turn = torch.where((_has_plane(posed) & _has_plane(unposed))[:, None, None], turn, still)
    return new_foot + (turn @ (points_N3 - foot)[..., None])[..., 0] - points_N3, distance


def _frames(corners_P33: Tensor) -> Tensor:
    """Right-handed orthonormal frames of triangles, one axis a column: first edge, within the plane, normal."""
    first = F.normalize(corners_P33[:, 1] - corners_P33[:, 0], dim=-1)
    normal = F.normalize(torch.linalg.cross(first, corners_P33[:, 2] - corners_P33[:, 0]), dim=-1)
    return torch.stack([first, torch.linalg.cross(normal, first), normal], dim=-1)


@dataclass
class PartGrids:
    """The deformation of some labels on a grid, all that rendering needs of it: it can be stored and indexed by label.

    `offsets_BP3GGG`: to the canonical head, for the PARTS eyes, face and mouth, at the cell centres between two corners.
    """

    offsets_BP3GGG: Tensor
    low_3: Tensor
    high_3: Tensor

    @torch.no_grad()
    def __call__(self, points_BN3: Tensor, part: str) -> Tensor:
        """Canonical points (B, N, 3) of the points by the motion of one of PARTS."""
        offsets = self.offsets_BP3GGG[:, PARTS.index(part)].to(points_BN3.dtype)
        return points_BN3 + look_up(offsets, points_BN3, self.low_3, self.high_3, "border")


class PartDeformation(nn.Module):
    """GenHead's deformation of a head with shape, expression, jaw and eyes to the canonical head (facts 3.2), neck at rest."""

    def __init__(self, flame: Flame):
        super().__init__()
        self.flame = flame
        canonical = flame.canonical()
        neighbours = torch.as_tensor(flame.head.neighbours)
        self.register_buffer("canonical_V3", canonical, persistent=False)
        self.register_buffer("neighbours", neighbours, persistent=False)
        for part, region in zip(PARTS, ("eyes", "face", "lips"), strict=True):
            self.register_buffer(
                f"{part}_vertices", torch.as_tensor(flame.head.regions[region]), persistent=False
            )
        # The grid covers the canonical head and the air around it, further out the border's offset holds.
        self.register_buffer("low_3", canonical.amin(0) - 0.1, persistent=False)
        self.register_buffer("high_3", canonical.amax(0) + 0.1, persistent=False)

    def meshes(
        self, shape_B300: Tensor, expression_B100: Tensor, jaw_B3: Tensor, eyes_B6: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Vertices (B, V, 3) with all parameters, and with expression and eyes at rest (the teeth follow the jaw only)."""
        pose = torch.cat([torch.zeros_like(jaw_B3), jaw_B3], dim=1)
        whole = self.flame.vertices(shape_B300, expression_B100, pose, eyes_B6)
        return whole, self.flame.vertices(
            shape_B300, torch.zeros_like(expression_B100), pose, torch.zeros_like(eyes_B6)
        )

    @torch.no_grad()
    def exact(
        self, shape_B300: Tensor, expression_B100: Tensor, jaw_B3: Tensor, eyes_B6: Tensor
    ) -> Callable[[Tensor, str], Tensor]:
        """The deformation of these labels, (points (B, N, 3), part) -> canonical points (B, N, 3), a search for each point."""
        whole, mouth = self.meshes(shape_B300, expression_B100, jaw_B3, eyes_B6)
        return lambda points, part: points + self._offsets(points, mouth if part == "mouth" else whole, part)

    @torch.no_grad()
    def grids(
        self, shape_B300: Tensor, expression_B100: Tensor, jaw_B3: Tensor, eyes_B6: Tensor, cells: int
    ) -> PartGrids:
        """The same on a grid of cells^3, to be interpolated: one search a label, however many views and steps use it."""
        points = cell_centres(cells, self.low_3, self.high_3).expand(len(shape_B300), -1, -1)
        exact = self.exact(shape_B300, expression_B100, jaw_B3, eyes_B6)
        moved = torch.stack([exact(points, part) - points for part in PARTS], dim=1)
        return PartGrids(
            moved.transpose(2, 3).unflatten(3, (cells, cells, cells)).contiguous(), self.low_3, self.high_3
        )

    def from_offsets(self, offsets_BP3GGG: Tensor) -> PartGrids:
        """Grids that were stored, put back into place."""
        return PartGrids(offsets_BP3GGG, self.low_3, self.high_3)

    def _offsets(self, points_BN3: Tensor, vertices_BV3: Tensor, part: str) -> Tensor:
        region = getattr(self, f"{part}_vertices")
        nearest = region[nearest_vertices(points_BN3, vertices_BV3[:, region], 1)[..., 0]]
        around = self.neighbours[nearest]  # (B, N, 10)
        padding = around == vertices_BV3.shape[1]
        around = around.masked_fill(padding, 0)
        batch = torch.arange(len(points_BN3), device=points_BN3.device)[:, None, None]
        position = vertices_BV3[batch, around]
        distance2 = (points_BN3[:, :, None] - position).square().sum(-1)
        weight = (1.0 / (distance2 + 1e-10)).masked_fill(padding, 0.0)
        weight = weight / weight.sum(-1, keepdim=True)
        return ((self.canonical_V3[around] - position) * weight[..., None]).sum(2)
