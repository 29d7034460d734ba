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
    batch = len(vertices_BV3)
    faces = len(faces_F3)
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
    row_Q = image_Q * size + y_Q
    place_Q = row_Q * size + x_Q
    pixels = batch * size * size
    nearest, winner = first_minimum(depth_Q, place_Q, pixels)
    is_seen = winner < len(place_Q)
    seen = is_seen.nonzero()[:, 0]
    winner_of_seen = winner[seen]
    face = torch.full_like(winner, -1)
    face[seen] = triangle_Q[winner_of_seen] % faces
    weights = depth_Q.new_zeros(pixels, 3)
    weights[seen] = weights_Q3[winner_of_seen]
    shape = (batch, size, size)
    return Raster(
        face=face.view(shape),
        weights=weights.view(*shape, 3),
        depth=nearest.view(shape),
    )


def _to_pixels(
    vertices_BV3: Tensor,
    cameras_B25: Tensor,
    size: int,
) -> tuple[Tensor, Tensor]:
    """Places (B, V, 2) in the picture, whole numbers being pixel centres, and distances along -z (B, V)."""
    outer_B16, inner_B9 = cameras_B25.split([16, 9], dim=1)
    cam2world = outer_B16.reshape(-1, 4, 4)
    intrinsics = inner_B9.reshape(-1, 3, 3)
    turn_B33 = cam2world[:, :3, :3]
    place_B13 = cam2world[:, None, :3, 3]
    local_BV3 = (vertices_BV3 - place_B13) @ turn_B33
    x_BV, y_BV, z_BV = local_BV3.unbind(-1)
    # The camera looks along its own -z with y up; in the picture y goes down.
    depth_BV = -z_BV
    plane_BV3 = torch.stack([x_BV, -y_BV, depth_BV], dim=-1)
    plane_BV3 = plane_BV3 @ intrinsics.mT
    in_front_BV1 = depth_BV.clamp_min(1e-6)[..., None]
    pixel_BV2 = plane_BV3[..., :2] / in_front_BV1 * size - 0.5
    return pixel_BV2, depth_BV


def _barycentric(corners_P32: Tensor, pixel_P2: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates (P, 3) of pixels in the triangles of the picture, and whether they lie inside, (P,).

    Each is the area of the sub-triangle opposite to a corner over the whole area.
    """
    spoke_P32 = corners_P32 - pixel_P2[:, None]
    next_P32 = spoke_P32.roll(-1, 1)
    area_P3 = cross2(spoke_P32, next_P32).roll(-1, 1)
    total_P = area_P3.sum(-1)
    has_area_P = total_P != 0
    divisor_P = torch.where(has_area_P, total_P, torch.inf)
    screen_P3 = area_P3 / divisor_P[:, None]
    within_P = (screen_P3 >= 0).all(-1)
    return screen_P3, within_P & has_area_P


def _covered(
    corner_T32: Tensor,
    depth_T3: Tensor,
    size: int,
) -> tuple[Tensor, Tensor]:
    """A row for each pixel of each visible triangle's bounding box: triangle (P,) and pixel (P, 2), int64."""
    low_T2 = corner_T32.amin(1).ceil()
    high_T2 = corner_T32.amax(1).floor()
    low_T2 = low_T2.clamp(0, size).long()
    high_T2 = high_T2.clamp(-1, size - 1).long()
    edge_T32 = corner_T32.roll(-1, 1) - corner_T32
    first_T2, second_T2, _ = edge_T32.unbind(1)
    area_T = cross2(first_T2, second_T2).abs()
    longest_T = edge_T32.norm(dim=-1).amax(1)
    longest_T = longest_T.clamp_min(1e-30)
    # What is thinner than the rounding of pixel coordinates is a line, and which pixels lie along it would be
    # rounding too.
    drawable_T = area_T / longest_T > THINNEST * size
    in_front_T = depth_T3.amin(1) > NEAREST
    visible_T = drawable_T & in_front_T
    extent_T2 = (high_T2 - low_T2 + 1).clamp_min(0)
    extent_T2 = extent_T2 * visible_T[:, None]

    # Step s of a triangle is the pixel (s mod width, s / width) of its box.
    count_T = extent_T2.prod(-1)
    index_T = torch.arange(len(count_T), device=count_T.device)
    triangle_P = torch.repeat_interleave(index_T, count_T)
    first_T = count_T.cumsum(0) - count_T
    index_P = torch.arange(len(triangle_P), device=count_T.device)
    step_P = index_P - first_T[triangle_P]
    width_P = extent_T2[triangle_P, 0]
    across_P = step_P % width_P
    down_P = torch.div(step_P, width_P, rounding_mode="floor")
    within_P2 = torch.stack([across_P, down_P], dim=-1)
    return triangle_P, within_P2 + low_T2[triangle_P]


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
    device = ring_BL3.device
    first = vertices_BV3.shape[1]
    count = ring_BL3.shape[1]
    around_L = torch.arange(count, device=device)
    next_L = (around_L + 1) % count
    middle_L = torch.full_like(around_L, first + count)
    fan = [first + around_L, first + next_L, middle_L]
    fan_L3 = torch.stack(fan, dim=1)
    faces = torch.cat([flame.faces, fan_L3])

    eyes = torch.as_tensor(flame.head.regions["eyes"], device=device)
    is_eye_V = torch.zeros(first, dtype=torch.bool, device=device)
    is_eye_V[eyes] = True
    # An eyelid's triangle shares corners with no eyeball: all three have to be of one.
    is_eye_F = is_eye_V[flame.faces].all(1)
    kind_of_mesh = is_eye_F.long()
    kind_of_fan = torch.full_like(around_L, MOUTH)
    # Pixels that see nothing have the face -1, which is the last kind.
    nothing = torch.zeros_like(around_L[:1])
    kind_of_face = torch.cat([kind_of_mesh, kind_of_fan, nothing])
    raster = rasterise(vertices, faces, cameras_B25, size * SUPERSAMPLING)
    kind_BNN = kind_of_face[raster.face]

    def mask(kind: int) -> Tensor:
        shown_B1NN = (kind_BNN == kind).float()[:, None]
        # The mean over the pixels of a pixel is a soft border.
        return F.avg_pool2d(shown_B1NN, SUPERSAMPLING)

    return mask(EYE), mask(MOUTH)
