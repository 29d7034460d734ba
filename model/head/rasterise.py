"""A triangle rasteriser in plain PyTorch, and the masks of eyes and mouth that it gives GenHead (facts 3.2).

The work grows with the pixels that triangles cover, not with triangles times pixels. No gradient.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.head.flame import Flame
from model.head.scatter import first_minimum

INNER_LIPS = slice(60, 68)  # landmarks around the opening of the mouth
SUPERSAMPLING = 2
THINNEST = 1e-6  # height of a triangle in the picture, a share of its side
NEAREST = 1e-3  # distance of a corner before the camera, world units
EYE, MOUTH = 1, 2  # what a face of the mesh shows; 0 is anything else


@dataclass
class Raster:
    """What each pixel of N x N sees."""

    face: Tensor  # (B, N, N) triangle or -1
    weights: Tensor  # (B, N, N, 3) barycentric coordinates on it
    depth: Tensor  # (B, N, N) distance along -z of the camera, or inf


@torch.no_grad()
def rasterise(
    vertices_BV3: Tensor,
    faces_F3: Tensor,
    cameras_B25: Tensor,
    size: int,
) -> Raster:
    """Draws a mesh (world units) from one camera each at size x size pixels.

    The nearest triangle wins, the lowest index among equals. Triangles that reach behind the camera or have
    no area in the picture are left out; both sides of a triangle are seen.
    """
    pixel_BV2, depth_BV = _to_pixels(vertices_BV3, cameras_B25, size)
    corner_BF32, depth_BF3 = pixel_BV2[:, faces_F3], depth_BV[:, faces_F3]
    triangle_P, x_P, y_P = _covered(corner_BF32, depth_BF3, size)

    # A barycentric coordinate is the area of the sub-triangle opposite to a corner over the whole area.
    corners_P32 = corner_BF32.flatten(0, 1)[triangle_P]
    spoke_P32 = corners_P32 - torch.stack([x_P, y_P], dim=-1)[:, None]
    next_P32 = spoke_P32.roll(-1, 1)
    cross_P3 = spoke_P32[..., 0] * next_P32[..., 1] - spoke_P32[..., 1] * next_P32[..., 0]
    area_P3 = cross_P3.roll(-1, 1)
    total_P = area_P3.sum(-1)
    screen_P3 = area_P3 / torch.where(total_P == 0, torch.inf, total_P)[:, None]
    inside_P = (screen_P3 >= 0).all(-1) & (total_P != 0)
    inside_Q = inside_P.nonzero()[:, 0]
    screen_Q3, triangle_Q = screen_P3[inside_Q], triangle_P[inside_Q]
    x_Q, y_Q = x_P[inside_Q], y_P[inside_Q]

    # Along a plane 1 / depth is linear in the image, depth is not.
    inverse_Q3 = screen_Q3 / depth_BF3.flatten(0, 1)[triangle_Q]
    depth_Q = 1.0 / inverse_Q3.sum(-1)

    batch, faces = len(vertices_BV3), len(faces_F3)
    image_Q = torch.div(triangle_Q, faces, rounding_mode="floor")
    place_Q = (image_Q * size + y_Q) * size + x_Q
    nearest, winner = first_minimum(depth_Q, place_Q, batch * size * size)
    seen = (winner < len(place_Q)).nonzero()[:, 0]
    face = torch.full_like(winner, -1)
    face[seen] = triangle_Q[winner[seen]] % faces
    weights = depth_Q.new_zeros(batch * size * size, 3)
    weights[seen] = (inverse_Q3 * depth_Q[:, None])[winner[seen]]
    shape = (batch, size, size)
    return Raster(face.view(shape), weights.view(*shape, 3), nearest.view(shape))


def _to_pixels(
    vertices_BV3: Tensor,
    cameras_B25: Tensor,
    size: int,
) -> tuple[Tensor, Tensor]:
    """Places (B, V, 2) in the picture, whole numbers being pixel centres, and distances along -z (B, V)."""
    cam2world = cameras_B25[:, :16].view(-1, 4, 4)
    intrinsics = cameras_B25[:, 16:].view(-1, 3, 3)
    local_BV3 = (vertices_BV3 - cam2world[:, None, :3, 3]) @ cam2world[:, :3, :3]
    depth_BV = -local_BV3[..., 2]
    plane_BV3 = torch.stack([local_BV3[..., 0], -local_BV3[..., 1], depth_BV], dim=-1) @ intrinsics.mT
    return plane_BV3[..., :2] / depth_BV.clamp_min(1e-6)[..., None] * size - 0.5, depth_BV


def _covered(
    corner_BF32: Tensor,
    depth_BF3: Tensor,
    size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """A row for each pixel of each visible triangle's bounding box: triangle (of B * F), x, y, (P,) int64."""
    low_BF2 = corner_BF32.amin(2).ceil().clamp(0, size).long()
    high_BF2 = corner_BF32.amax(2).floor().clamp(-1, size - 1).long()
    edge_BF32 = corner_BF32.roll(-1, 2) - corner_BF32
    first, second = edge_BF32[:, :, 0], edge_BF32[:, :, 1]
    area_BF = (first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]).abs()
    height_BF = area_BF / edge_BF32.norm(dim=-1).amax(2).clamp_min(1e-30)
    # What is thinner than the rounding of pixel coordinates is a line, and which pixels lie along it would be
    # rounding too.
    visible_BF = (depth_BF3.amin(2) > NEAREST) & (height_BF > THINNEST * size)
    extent_BF2 = (high_BF2 - low_BF2 + 1).clamp_min(0) * visible_BF[..., None]

    count_T = extent_BF2.prod(-1).flatten()
    index_T = torch.arange(len(count_T), device=count_T.device)
    triangle_P = torch.repeat_interleave(index_T, count_T)
    first_T = count_T.cumsum(0) - count_T
    step_P = torch.arange(len(triangle_P), device=count_T.device) - first_T[triangle_P]
    width_P = extent_BF2.flatten(0, 1)[triangle_P, 0]
    low_P2 = low_BF2.flatten(0, 1)[triangle_P]
    x_P = step_P % width_P + low_P2[:, 0]
    y_P = torch.div(step_P, width_P, rounding_mode="floor") + low_P2[:, 1]
    return triangle_P, x_P, y_P


@torch.no_grad()
def part_masks(
    flame: Flame,
    vertices_BV3: Tensor,
    cameras_B25: Tensor,
    size: int,
) -> tuple[Tensor, Tensor]:
    """Where a picture shows an eyeball and where the inside of the mouth.

    Two masks (B, 1, size, size) in [0, 1] with soft borders. The mouth is the opening between the inner lip
    landmarks, closed by a fan of triangles, as far as nothing hides it.
    """
    ring_BL3 = flame.landmarks(vertices_BV3)[:, INNER_LIPS]
    middle_B13 = ring_BL3.mean(1, keepdim=True)
    vertices = torch.cat([vertices_BV3, ring_BL3, middle_B13], dim=1)
    first, count = vertices_BV3.shape[1], ring_BL3.shape[1]
    around_L = torch.arange(count, device=ring_BL3.device)
    middle_L = torch.full_like(around_L, first + count)
    fan_L3 = torch.stack([first + around_L, first + (around_L + 1) % count, middle_L], dim=1)
    faces = torch.cat([flame.faces, fan_L3])

    is_eye_V = torch.zeros(first, dtype=torch.bool, device=ring_BL3.device)
    is_eye_V[torch.as_tensor(flame.head.regions["eyes"], device=ring_BL3.device)] = True
    kind_of_mesh = is_eye_V[flame.faces].all(1).long()
    # Pixels that see nothing have the face -1, which is the last kind.
    nothing = torch.zeros_like(around_L[:1])
    kind_of_face = torch.cat([kind_of_mesh, torch.full_like(around_L, MOUTH), nothing])
    kind_BNN = kind_of_face[rasterise(vertices, faces, cameras_B25, size * SUPERSAMPLING).face]

    def mask(kind: int) -> Tensor:
        return F.avg_pool2d((kind_BNN == kind).float()[:, None], SUPERSAMPLING)

    return mask(EYE), mask(MOUTH)
