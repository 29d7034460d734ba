"""A triangle rasteriser in plain PyTorch, and the masks of eyes and mouth that it gives GenHead (facts 3.2).

The work grows with the pixels that triangles cover, not with triangles times pixels. No gradient.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.head.flame import Flame

INNER_LIPS = slice(60, 68)  # landmarks around the opening of the mouth
SUPERSAMPLING = 2
THINNEST = 1e-6  # height of a triangle in the picture, a share of its side


@dataclass
class Raster:
    """What each pixel sees: (B, N, N) triangle or -1, (B, N, N, 3) barycentric coordinates on it, (B, N, N) distance along -z or inf."""

    face: Tensor
    weights: Tensor
    depth: Tensor


@torch.no_grad()
def rasterise(vertices_BV3: Tensor, faces_F3: Tensor, cameras_B25: Tensor, size: int) -> Raster:
    """Draws a mesh (world units) from one camera each at size x size pixels; the nearest triangle wins, the lowest index among equals.

    Triangles that reach behind the camera or have no area in the picture are left out; both sides of a triangle are seen.
    """
    batch, device = len(vertices_BV3), vertices_BV3.device
    cam2world, intrinsics = cameras_B25[:, :16].view(-1, 4, 4), cameras_B25[:, 16:].view(-1, 3, 3)
    local = (vertices_BV3 - cam2world[:, None, :3, 3]) @ cam2world[:, :3, :3]
    depth = -local[..., 2]
    plane = torch.stack([local[..., 0], -local[..., 1], depth], dim=-1) @ intrinsics.mT
    pixel = plane[..., :2] / depth.clamp_min(1e-6)[..., None] * size - 0.5  # whole numbers are pixel centres
    corner_BF32, depth_BF3 = pixel[:, faces_F3], depth[:, faces_F3]

    low = corner_BF32.amin(2).ceil().clamp(0, size).long()
    high = corner_BF32.amax(2).floor().clamp(-1, size - 1).long()
    edge = corner_BF32.roll(-1, 2) - corner_BF32
    height = (edge[:, :, 0, 0] * edge[:, :, 1, 1] - edge[:, :, 0, 1] * edge[:, :, 1, 0]).abs() / edge.norm(
        dim=-1
    ).amax(2).clamp_min(1e-30)
    # What is thinner than the rounding of pixel coordinates is a line, and where a pixel lies along it would be rounding too.
    visible = (depth_BF3.amin(2) > 1e-3) & (height > THINNEST * size)
    extent = (high - low + 1).clamp_min(0) * visible[..., None]
    count = extent.prod(-1).flatten()
    pair = torch.repeat_interleave(
        torch.arange(len(count), device=device), count
    )  # one entry for each pixel of a triangle's bounding box
    step = torch.arange(len(pair), device=device) - (count.cumsum(0) - count)[pair]
    width = extent.flatten(0, 1)[pair, 0]
    x, y = (
        step % width + low.flatten(0, 1)[pair, 0],
        torch.div(step, width, rounding_mode="floor") + low.flatten(0, 1)[pair, 1],
    )

    corners = corner_BF32.flatten(0, 1)[pair]
    spokes = corners - torch.stack([x, y], dim=-1)[:, None]
    following = spokes.roll(-1, 1)
    area = (spokes[..., 0] * following[..., 1] - spokes[..., 1] * following[..., 0]).roll(
        -1, 1
    )  # sub-triangle opposite to each corner
    total = area.sum(-1)
    screen = area / torch.where(total == 0, torch.inf, total)[:, None]
    inside = ((screen >= 0).all(-1) & (total != 0)).nonzero()[:, 0]
    screen, pair, x, y = screen[inside], pair[inside], x[inside], y[inside]
    inverse = screen / depth_BF3.flatten(0, 1)[pair]  # depth is linear in the image as its inverse
    distance = 1.0 / inverse.sum(-1)

    place = (torch.div(pair, len(faces_F3), rounding_mode="floor") * size + y) * size + x
    nearest = distance.new_full((batch * size * size,), torch.inf).scatter_reduce(0, place, distance, "amin")
    order = torch.where(distance == nearest[place], torch.arange(len(place), device=device), len(place))
    winner = order.new_full((batch * size * size,), len(place)).scatter_reduce(0, place, order, "amin")
    seen = (winner < len(place)).nonzero()[:, 0]
    face = torch.full_like(winner, -1)
    face[seen] = pair[winner[seen]] % len(faces_F3)
    weights = distance.new_zeros(batch * size * size, 3)
    weights[seen] = (inverse * distance[:, None])[winner[seen]]
    return Raster(
        face.view(batch, size, size), weights.view(batch, size, size, 3), nearest.view(batch, size, size)
    )


@torch.no_grad()
def part_masks(flame: Flame, vertices_BV3: Tensor, cameras_B25: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Where the picture shows an eyeball and where the inside of the mouth, (B, 1, size, size) each, in [0, 1] with soft borders.

    The mouth is the opening between the inner lip landmarks, closed by a fan of triangles, as far as nothing hides it.
    """
    ring = flame.landmarks(vertices_BV3)[:, INNER_LIPS]
    first = vertices_BV3.shape[1]
    count = ring.shape[1]
    around = torch.arange(count, device=ring.device)
    fan = torch.stack(
        [first + around, first + (around + 1) % count, torch.full_like(around, first + count)], dim=1
    )
    faces = torch.cat([flame.faces, fan])
    vertices = torch.cat([vertices_BV3, ring, ring.mean(1, keepdim=True)], dim=1)
    is_eye = torch.zeros(first, dtype=torch.bool, device=ring.device)
    is_eye[torch.as_tensor(flame.head.regions["eyes"], device=ring.device)] = True
    seen = rasterise(vertices, faces, cameras_B25, size * SUPERSAMPLING).face
    kind = torch.cat(
        [is_eye[flame.faces].all(1).long(), torch.full_like(around, 2), torch.zeros_like(around[:1])]
    )[seen]  # -1 is the last
    return tuple(F.avg_pool2d((kind == k).float()[:, None], SUPERSAMPLING) for k in (1, 2))
