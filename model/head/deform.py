"""Deformations of space that follow the head mesh: Psi's neck field and GenHead's parts (facts 2.7 and 3.2).

Closest triangles and vertices are found exactly in plain PyTorch. Points are world units, (B, N, 3); nothing
here has a gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.head.flame import Flame
from model.head.scatter import first_minimum
from model.head.vectors import dot, square_length, turned

CHUNK = 1 << 20  # pairs of points and triangles or vertices held at once
ROUNDING = 1e-6  # of sums of squares in float32, relative
FINE, COARSE = 24, 8  # cells a side of the neck field's grids
BOX = 1.3  # side of the cube that the neck field covers, world units
PARTS = ("eyes", "face", "mouth")
REGION_OF_PART = {"eyes": "eyes", "face": "face", "mouth": "lips"}
MARGIN = 0.1  # air around the canonical head that the grids of its deformation cover, world units


def closest_on_triangles(points_P3: Tensor, corners_P33: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest point of each triangle to its own point: barycentric (P, 3), and the squared distance (P,).

    The nearest point is the projection on the plane if that lies inside, else the nearest of three points on
    the edges. A triangle without area, or so thin that rounding decides where its plane lies, is handled by
    its edges alone.
    """
    # Edge i runs from corner i to corner i + 1; `along` is where the foot of the point lies on it, 0 to 1.
    edge_P33 = corners_P33.roll(-1, 1) - corners_P33
    to_point_P33 = points_P3[:, None] - corners_P33
    edge2_P3 = square_length(edge_P33).clamp_min(1e-30)
    along_P3 = (dot(to_point_P33, edge_P33) / edge2_P3).clamp(0, 1)
    rest_P33 = to_point_P33 - along_P3[..., None] * edge_P33
    on_edge_P3 = square_length(rest_P33)
    edge_distance2_P, which_P = on_edge_P3.min(1)

    share_P = along_P3.gather(1, which_P[:, None])[:, 0]
    rows_P = torch.arange(len(points_P3), device=points_P3.device)
    next_P = (which_P + 1) % 3
    edge_weights_P3 = torch.zeros_like(points_P3)
    edge_weights_P3[rows_P, which_P] = 1 - share_P
    edge_weights_P3[rows_P, next_P] = share_P

    # A barycentric coordinate is the signed area of a sub-triangle over that of the triangle. The one at
    # edge i belongs to the corner opposite to it, which is corner i + 2.
    normal_P3 = _normal(edge_P33)
    area2_P = square_length(normal_P3).clamp_min(1e-30)
    part_normal_P33 = torch.linalg.cross(edge_P33, to_point_P33)
    part_area_P3 = dot(part_normal_P33, normal_P3[:, None])
    opposite_area_P3 = part_area_P3.roll(-1, 1)
    plane_weights_P3 = opposite_area_P3 / area2_P[:, None]
    height_P = dot(to_point_P33[:, 0], normal_P3)
    plane_distance2_P = height_P.square() / area2_P

    within_P = (plane_weights_P3 >= 0).all(1)
    inside_P = within_P & _has_plane(corners_P33)
    weights_P3 = torch.where(inside_P[:, None], plane_weights_P3, edge_weights_P3)
    distance2_P = torch.where(inside_P, plane_distance2_P, edge_distance2_P)
    return weights_P3, distance2_P


def _normal(edge_P33: Tensor) -> Tensor:
    """Normals (P, 3) of triangles by their edges, as long as twice their areas."""
    first_P3, _, last_P3 = edge_P33.unbind(1)
    return torch.linalg.cross(first_P3, -last_P3)


def _has_plane(corners_P33: Tensor) -> Tensor:
    """Whether float32 knows the plane of each triangle, (P,).

    For that it has to be a few ten-thousandths as high over its longest edge as that edge is long.
    """
    edge_P33 = corners_P33.roll(-1, 1) - corners_P33
    normal_P3 = _normal(edge_P33)
    longest2_P = square_length(edge_P33).amax(1)
    return square_length(normal_P3) > 1e-7 * longest2_P.square()


def closest_on_mesh(
    points_N3: Tensor,
    vertices_V3: Tensor,
    faces_F3: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The mesh's nearest point to each point: face (N,) int64, barycentric (N, 3), squared distance (N,).

    Exact. Of equally near faces the one with the lowest index is taken.
    """
    corners_F33 = vertices_V3[faces_F3]
    # A vertex of no face says nothing of where the mesh is.
    corner_C3 = vertices_V3[faces_F3.unique()]
    points_at_once = max(1, CHUNK // len(faces_F3))
    results = []
    for points_n3 in points_N3.split(points_at_once):
        row_P, face_P = _candidates(points_n3, corners_F33, corner_C3)
        weights_P3, distance2_P = closest_on_triangles(points_n3[row_P], corners_F33[face_P])
        nearest_n, first_n = first_minimum(distance2_P, row_P, len(points_n3))
        results.append((face_P[first_n], weights_P3[first_n], nearest_n))
    columns = zip(*results, strict=True)
    face_N, weights_N3, distance2_N = (torch.cat(column) for column in columns)
    return face_N, weights_N3, distance2_N


def _candidates(
    points_n3: Tensor,
    corners_F33: Tensor,
    corner_C3: Tensor,
) -> tuple[Tensor, Tensor]:
    """Rows (P,) and faces (P,) of the pairs that may be nearest, by rows and then faces.

    Of thousands of faces a point they leave a few: those that come as near as some `corner_C3` of a face.
    """
    height2_n1 = square_length(points_n3)[:, None]
    corner2_C = square_length(corner_C3)
    # |p - c|^2 = |p|^2 + |c|^2 - 2 p.c is ten times faster than differences, and rounds at the size of its
    # terms. Bounds are wider by that.
    slack_n1 = ROUNDING * (height2_n1 + corner2_C.max())
    product_nC = torch.addmm(corner2_C, points_n3, corner_C3.T, alpha=-2)
    bound2_n1 = product_nC.amin(1, keepdim=True) + height2_n1 + slack_n1
    bound_n1 = bound2_n1.clamp_min(0).sqrt()

    # A triangle lies within the radius r of its centre c, and can win if |p - c| <= bound + r. Squared, that
    # is one product of (p, bound) and (-2 c, -2 r).
    centre_F3 = corners_F33.mean(1)
    spoke_F33 = corners_F33 - centre_F3[:, None]
    radius_F1 = spoke_F33.norm(dim=-1).amax(1, keepdim=True)
    known_n4 = torch.cat([points_n3, bound_n1], dim=1)
    sphere_F4 = torch.cat([centre_F3, radius_F1], dim=1)
    rest_F = square_length(centre_F3) - radius_F1[:, 0].square()
    product_nF = torch.addmm(rest_F, known_n4, sphere_F4.T, alpha=-2)
    near_nF = product_nF <= bound_n1.square() - height2_n1 + slack_n1
    row_P, face_P = near_nF.nonzero(as_tuple=True)

    # Long triangles fill little of their sphere, and more of their box.
    low_F3, high_F3 = corners_F33.aminmax(dim=1)
    point_P3 = points_n3[row_P]
    in_box_P3 = torch.minimum(torch.maximum(point_P3, low_F3[face_P]), high_F3[face_P])
    box2_P = square_length(point_P3 - in_box_P3)
    meets_P = box2_P <= (bound2_n1 + slack_n1)[row_P, 0]
    return row_P[meets_P], face_P[meets_P]


def nearest_vertices(
    points_BN3: Tensor,
    vertices_BV3: Tensor,
    count: int,
) -> Tensor:
    """Indices (B, N, count) of the nearest vertices, nearest first."""
    height2_B1V = square_length(vertices_BV3)[:, None]
    at_once = max(1, CHUNK // height2_B1V.numel())
    indices = []
    for points_Bn3 in points_BN3.split(at_once, dim=1):
        # |p - v|^2 = |p|^2 + |v|^2 - 2 p.v, and |p|^2 is the same for all vertices of a point.
        score_BnV = torch.baddbmm(height2_B1V, points_Bn3, vertices_BV3.mT, alpha=-2)
        # One minimum is several times faster than a list of one.
        if count == 1:
            nearest = score_BnV.argmin(-1, keepdim=True)
        else:
            nearest = score_BnV.topk(count, dim=-1, largest=False).indices
        indices.append(nearest)
    return torch.cat(indices, 1)


def cell_centres(
    cells: int,
    low_3: Tensor,
    high_3: Tensor,
) -> Tensor:
    """Centres of the cells of a grid between two corners, (cells^3, 3); x varies slowest."""
    index = torch.arange(cells, device=low_3.device, dtype=low_3.dtype)
    step = (index + 0.5) / cells
    axes = torch.meshgrid(step, step, step, indexing="ij")
    grid = torch.stack(axes, dim=-1)
    fraction = grid.view(-1, 3)
    return low_3 + fraction * (high_3 - low_3)


def look_up(
    grid_BCGGG: Tensor,
    points_BN3: Tensor,
    low_3: Tensor,
    high_3: Tensor,
    padding: str,
) -> Tensor:
    """Trilinear values (B, N, C) of a grid with axes x, y, z.

    Its values stand at the centres of the cells between two corners; `padding` is what grid_sample takes
    outside, "zeros" or "border".
    """
    cells = grid_BCGGG.shape[-1]
    # grid_sample has -1 and 1 at the outermost centres, which lie half a cell inside of the corners.
    share_BN3 = (points_BN3 - low_3) / (high_3 - low_3)
    place_BN3 = (share_BN3 * 2 - 1) * (cells / (cells - 1))
    # It wants the last axis first.
    place_BN113 = place_BN3.flip(-1)[:, :, None, None]
    values_BCN11 = F.grid_sample(
        grid_BCGGG,
        place_BN113,
        mode="bilinear",
        padding_mode=padding,
        align_corners=True,
    )
    return values_BCN11[..., 0, 0].transpose(1, 2)


class NeckField:
    """Undoes the neck rotation of the points of space: posed -> un-posed (facts 2.7).

    `fine_B3GGG` and `coarse_B3GGG` are offsets at the cell centres of a cube of side `box` around the
    origin, axes x, y, z; `distance2_B1GGG` are squared distances to the posed mesh on the fine grid. Near
    the mesh the fine offset holds, far from it the smoothed coarse one. The batch may be 1 for all points.
    """

    def __init__(
        self,
        fine_B3GGG: Tensor,
        distance2_B1GGG: Tensor,
        coarse_B3GGG: Tensor,
        box: float = BOX,
    ):
        for _ in range(2):
            padded = F.pad(coarse_B3GGG, (1, 1, 1, 1, 1, 1), mode="replicate")
            coarse_B3GGG = F.avg_pool3d(padded, 3, stride=1)
        fine_B4GGG = torch.cat([fine_B3GGG, distance2_B1GGG], dim=1)
        self.fine, self.coarse, self.box = fine_B4GGG, coarse_B3GGG, box

    @classmethod
    def of_grids(cls, fine_B4GGG: Tensor, coarse_B3GGG: Tensor, box: float = BOX) -> "NeckField":
        """A field of its own grids `fine` and `coarse`, the latter being smooth already."""
        field = cls.__new__(cls)
        field.fine, field.coarse, field.box = fine_B4GGG, coarse_B3GGG, box
        return field

    def __len__(self) -> int:
        return len(self.fine)

    def __getitem__(self, rows: slice | Tensor | list[int]) -> "NeckField":
        """The fields of some of the heads."""
        return self.of_grids(self.fine[rows], self.coarse[rows], self.box)

    @classmethod
    @torch.no_grad()
    def between(
        cls,
        posed_BV3: Tensor,
        unposed_BV3: Tensor,
        faces_F3: Tensor,
        box: float = BOX,
    ) -> "NeckField":
        """The field between two poses of the (simplified) mesh."""
        fine, distance2 = cls._grids(posed_BV3, unposed_BV3, faces_F3, box, FINE)
        coarse, _ = cls._grids(posed_BV3, unposed_BV3, faces_F3, box, COARSE)
        return cls(fine, distance2, coarse, box)

    @staticmethod
    def _grids(
        posed_BV3: Tensor,
        unposed_BV3: Tensor,
        faces_F3: Tensor,
        box: float,
        cells: int,
    ) -> tuple[Tensor, Tensor]:
        """Offsets (B, 3, G, G, G) and squared distances (B, 1, G, G, G) at the centres of cells^3 cells."""
        low_3 = posed_BV3.new_full((3,), -box / 2)
        points_N3 = cell_centres(cells, low_3, -low_3)
        offsets, distances2 = [], []
        for posed_V3, unposed_V3 in zip(posed_BV3, unposed_BV3, strict=True):
            offset_N3, distance2_N = surface_offset(points_N3, posed_V3, unposed_V3, faces_F3)
            offsets.append(offset_N3)
            distances2.append(distance2_N)
        grid = (cells, cells, cells)
        offset_B3N = torch.stack(offsets).transpose(1, 2)
        offset_B3GGG = offset_B3N.reshape(-1, 3, *grid)
        distance2_BN = torch.stack(distances2)
        return offset_B3GGG, distance2_BN.view(-1, 1, *grid)

    @torch.no_grad()
    def __call__(self, points_BN3: Tensor) -> Tensor:
        """Un-posed points (B, N, 3) of posed ones."""
        batch = len(points_BN3)
        fine_grid = self.fine.expand(batch, -1, -1, -1, -1)
        coarse_grid = self.coarse.expand(batch, -1, -1, -1, -1)
        low_3 = points_BN3.new_full((3,), -self.box / 2)
        fine_BN4 = look_up(fine_grid, points_BN3, low_3, -low_3, "zeros")
        coarse_BN3 = look_up(coarse_grid, points_BN3, low_3, -low_3, "zeros")
        offset_BN3 = fine_BN4[..., :3]
        distance2_BN1 = fine_BN4[..., 3:]
        beyond_BN1 = (distance2_BN1 - 3e-3).relu()
        weight_BN1 = torch.exp(-1000.0 * beyond_BN1)
        return points_BN3 + coarse_BN3 + weight_BN1 * (offset_BN3 - coarse_BN3)

    @torch.no_grad()
    def of_heads(self, points_M3: Tensor, heads_M: Tensor | None) -> Tensor:
        """The same for points (M, 3) of the heads `heads_M`; None when there is one field for all."""
        if heads_M is None or len(self) == 1:
            return self(points_M3[None])[0]
        moved_M3 = torch.empty_like(points_M3)
        for head in range(len(self)):
            rows = (heads_M == head).nonzero()[:, 0]
            own = points_M3.index_select(0, rows)
            moved_M3[rows] = self[head : head + 1](own[None])[0]
        return moved_M3


def surface_offset(
    points_N3: Tensor,
    posed_V3: Tensor,
    unposed_V3: Tensor,
    faces_F3: Tensor,
) -> tuple[Tensor, Tensor]:
    """How points move with their nearest triangle from one pose to the other: (N, 3), squared distances (N,).

    The foot point keeps its barycentric coordinates, the rest turns with the triangle. Where the foot lies
    inside its triangle this is the official surface field (barycentric projection plus signed offset along
    the normal); beyond an edge it stays rigid. A triangle without area says nothing about a turn: there the
    points only move along.
    """
    face_N, weights_N3, distance2_N = closest_on_mesh(points_N3, posed_V3, faces_F3)
    corners_N3 = faces_F3[face_N]
    posed_N33 = posed_V3[corners_N3]
    unposed_N33 = unposed_V3[corners_N3]
    foot_N3 = (posed_N33 * weights_N3[..., None]).sum(1)
    new_foot_N3 = (unposed_N33 * weights_N3[..., None]).sum(1)

    turn_N33 = _frames(unposed_N33) @ _frames(posed_N33).transpose(1, 2)
    still_33 = torch.eye(3, dtype=turn_N33.dtype, device=turn_N33.device)
    turns_N = _has_plane(posed_N33) & _has_plane(unposed_N33)
    turn_N33 = torch.where(turns_N[:, None, None], turn_N33, still_33)
    rest_N3 = turned(turn_N33, points_N3 - foot_N3)
    offset_N3 = new_foot_N3 + rest_N3 - points_N3
    return offset_N3, distance2_N


def _frames(corners_P33: Tensor) -> Tensor:
    """Right-handed orthonormal frames of triangles: first edge, within the plane, normal, one a column."""
    a_P3, b_P3, c_P3 = corners_P33.unbind(1)
    first_P3 = F.normalize(b_P3 - a_P3, dim=-1)
    normal_P3 = torch.linalg.cross(first_P3, c_P3 - a_P3)
    normal_P3 = F.normalize(normal_P3, dim=-1)
    second_P3 = torch.linalg.cross(normal_P3, first_P3)
    return torch.stack([first_P3, second_P3, normal_P3], dim=-1)


@dataclass
class PartGrids:
    """The deformation of some labels on a grid: all that rendering needs, stored and indexed by label.

    `offsets_BP3GGG`: to the canonical head, for the PARTS eyes, face and mouth, at the cell centres between
    two corners.
    """

    offsets_BP3GGG: Tensor
    low_3: Tensor
    high_3: Tensor

    @torch.no_grad()
    def __call__(self, points_BN3: Tensor, part: str) -> Tensor:
        """Canonical points (B, N, 3) of the points by the motion of one of PARTS."""
        number = PARTS.index(part)
        grid_B3GGG = self.offsets_BP3GGG[:, number].to(points_BN3.dtype)
        offset_BN3 = look_up(grid_B3GGG, points_BN3, self.low_3, self.high_3, "border")
        return points_BN3 + offset_BN3


class PartDeformation(nn.Module):
    """GenHead's deformation of a head with shape, expression, jaw and eyes to the canonical head (facts 3.2).

    The neck is taken as at rest.
    """

    def __init__(self, flame: Flame):
        super().__init__()
        self.flame = flame
        canonical_V3 = flame.canonical()

        def constant(name: str, value: Tensor) -> None:
            self.register_buffer(name, value, persistent=False)

        constant("canonical_V3", canonical_V3)
        constant("neighbours", torch.as_tensor(flame.head.neighbours))
        for part in PARTS:
            region = flame.head.regions[REGION_OF_PART[part]]
            constant(f"{part}_vertices", torch.as_tensor(region))
        # The grid covers the canonical head and the air around it; further out the border's offset holds.
        constant("low_3", canonical_V3.amin(0) - MARGIN)
        constant("high_3", canonical_V3.amax(0) + MARGIN)

    def meshes(
        self,
        shape_B300: Tensor,
        expression_B100: Tensor,
        jaw_B3: Tensor,
        eyes_B6: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Vertices (B, V, 3) with all parameters, and with expression and eyes at rest.

        The second ones are for the teeth, which follow the jaw alone.
        """
        neck_B3 = torch.zeros_like(jaw_B3)
        pose_B6 = torch.cat([neck_B3, jaw_B3], dim=1)
        whole_BV3 = self.flame.vertices(shape_B300, expression_B100, pose_B6, eyes_B6)
        no_expression = torch.zeros_like(expression_B100)
        straight = torch.zeros_like(eyes_B6)
        mouth_BV3 = self.flame.vertices(shape_B300, no_expression, pose_B6, straight)
        return whole_BV3, mouth_BV3

    @torch.no_grad()
    def exact(
        self,
        shape_B300: Tensor,
        expression_B100: Tensor,
        jaw_B3: Tensor,
        eyes_B6: Tensor,
    ) -> Callable[[Tensor, str], Tensor]:
        """The deformation of these labels, a search for each point: (points (B, N, 3), part) -> canonical."""
        whole_BV3, mouth_BV3 = self.meshes(shape_B300, expression_B100, jaw_B3, eyes_B6)
        vertices_of = {"eyes": whole_BV3, "face": whole_BV3, "mouth": mouth_BV3}

        def deform(points_BN3: Tensor, part: str) -> Tensor:
            offset_BN3 = self._offsets(points_BN3, vertices_of[part], part)
            return points_BN3 + offset_BN3

        return deform

    @torch.no_grad()
    def grids(
        self,
        shape_B300: Tensor,
        expression_B100: Tensor,
        jaw_B3: Tensor,
        eyes_B6: Tensor,
        cells: int,
    ) -> PartGrids:
        """The same on a grid of cells^3, to be interpolated: one search a label, for all views and steps."""
        points_N3 = cell_centres(cells, self.low_3, self.high_3)
        points_BN3 = points_N3.expand(len(shape_B300), -1, -1)
        exact = self.exact(shape_B300, expression_B100, jaw_B3, eyes_B6)
        offsets = [exact(points_BN3, part) - points_BN3 for part in PARTS]
        offsets_BP3N = torch.stack(offsets, dim=1).transpose(2, 3)
        offsets_BP3GGG = offsets_BP3N.unflatten(3, (cells, cells, cells))
        return self.from_offsets(offsets_BP3GGG.contiguous())

    def from_offsets(self, offsets_BP3GGG: Tensor) -> PartGrids:
        """Grids that were stored, put back into place."""
        return PartGrids(offsets_BP3GGG, self.low_3, self.high_3)

    def _offsets(
        self,
        points_BN3: Tensor,
        vertices_BV3: Tensor,
        part: str,
    ) -> Tensor:
        """What takes points to the canonical head, (B, N, 3).

        The motions of the ten vertices around the nearest one of the part's region, weighed by 1 /
        distance^2.
        """
        region_R = getattr(self, f"{part}_vertices")
        nearest_BN1 = nearest_vertices(points_BN3, vertices_BV3[:, region_R], 1)
        nearest_BN = region_R[nearest_BN1[..., 0]]
        around_BN10 = self.neighbours[nearest_BN]
        # A vertex that has fewer neighbours is padded with V; the padding counts for nothing.
        padding_BN10 = around_BN10 == vertices_BV3.shape[1]
        around_BN10 = around_BN10.masked_fill(padding_BN10, 0)

        batch_B = torch.arange(len(points_BN3), device=points_BN3.device)
        position_BN103 = vertices_BV3[batch_B[:, None, None], around_BN10]
        to_vertex_BN103 = points_BN3[:, :, None] - position_BN103
        distance2_BN10 = square_length(to_vertex_BN103)
        weight_BN10 = 1.0 / (distance2_BN10 + 1e-10)
        weight_BN10 = weight_BN10.masked_fill(padding_BN10, 0.0)
        weight_BN10 = weight_BN10 / weight_BN10.sum(-1, keepdim=True)
        motion_BN103 = self.canonical_V3[around_BN10] - position_BN103
        return (motion_BN103 * weight_BN10[..., None]).sum(2)
