"""A triangle rasteriser in plain PyTorch, and the masks of eyes and mouth that it gives GenHead (facts 3.2).

The work grows with the pixels that triangles cover, not with triangles times pixels. No gradient.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.head.flame import Flame
from model.head.scatter import first_minimum
from model.head.vectors import cross2

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
    batch, faces = len(vertices_BV3), len(faces_F3)
    pixel_BV2, depth_BV = _to_pixels(vertices_BV3, cameras_B25, size)
    corner_T32 = pixel_BV2[:, faces_F3].flatten(0, 1)
    depth_T3 = depth_BV[:, faces_F3].flatten(0, 1)
    triangle_P, pixel_P2 = _covered(corner_T32, depth_T3, size)
    screen_P3, inside_P = _barycentric(corner_T32[triangle_P], pixel_P2)
    inside_Q = inside_P.nonzero()[:, 0]
    triangle_Q = triangle_P[inside_Q]
    x_Q, y_Q = pixel_P2[inside_Q].unbind(-1)

    # Along a plane 1 / depth is linear in the image, depth is not.
    inverse_Q3 = screen_P3[inside_Q] / depth_T3[triangle_Q]
    depth_Q = 1.0 / inverse_Q3.sum(-1)
    weights_Q3 = inverse_Q3 * depth_Q[:, None]

    image_Q = torch.div(triangle_Q, faces, rounding_mode="floor")
    place_Q = (image_Q * size + y_Q) * size + x_Q
    pixels = batch * size * size
    nearest, winner = first_minimum(depth_Q, place_Q, pixels)
    seen = (winner < len(place_Q)).nonzero()[:, 0]
    winner_of_seen = winner[seen]
    face = torch.full_like(winner, -1)
    face[seen] = triangle_Q[winner_of_seen] % faces
    weights = depth_Q.new_zeros(pixels, 3)
    weights[seen] = weights_Q3[winner_of_seen]
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


def _barycentric(corners_P32: Tensor, pixel_P2: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates (P, 3) of pixels in the triangles of the picture, and whether they lie inside, (P,).

    Each is the area of the sub-triangle opposite to a corner over the whole area.
    """
    spoke_P32 = corners_P32 - pixel_P2[:, None]
    area_P3 = cross2(spoke_P32, spoke_P32.roll(-1, 1)).roll(-1, 1)
    total_P = area_P3.sum(-1)
    has_area_P = total_P != 0
    screen_P3 = area_P3 / torch.where(has_area_P, total_P, torch.inf)[:, None]
    return screen_P3, (screen_P3 >= 0).all(-1) & has_area_P


def _covered(
    corner_T32: Tensor,
    depth_T3: Tensor,
    size: int,
) -> tuple[Tensor, Tensor]:
    """A row for each pixel of each visible triangle's bounding box: triangle (P,) and pixel (P, 2), int64."""
    low_T2 = corner_T32.amin(1).ceil().clamp(0, size).long()
    high_T2 = corner_T32.amax(1).floor().clamp(-1, size - 1).long()
    edge_T32 = corner_T32.roll(-1, 1) - corner_T32
    area_T = cross2(edge_T32[:, 0], edge_T32[:, 1]).abs()
    longest_T = edge_T32.norm(dim=-1).amax(1).clamp_min(1e-30)
    # What is thinner than the rounding of pixel coordinates is a line, and which pixels lie along it would be
    # rounding too.
    drawable_T = area_T / longest_T > THINNEST * size
    visible_T = drawable_T & (depth_T3.amin(1) > NEAREST)
    extent_T2 = (high_T2 - low_T2 + 1).clamp_min(0) * visible_T[:, None]

    # Step s of a triangle is the pixel (s mod width, s / width) of its box.
    count_T = extent_T2.prod(-1)
    index_T = torch.arange(len(count_T), device=count_T.device)
    triangle_P = torch.repeat_interleave(index_T, count_T)
    first_T = count_T.cumsum(0) - count_T
    step_P = torch.arange(len(triangle_P), device=count_T.device) - first_T[triangle_P]
    width_P = extent_T2[triangle_P, 0]
    across_P = step_P % width_P
    down_P = torch.div(step_P, width_P, rounding_mode="floor")
    return triangle_P, torch.stack([across_P, down_P], dim=-1) + low_T2[triangle_P]


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
