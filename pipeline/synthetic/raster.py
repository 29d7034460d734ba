"""Drawing a generated person through any camera: a scan-line rasteriser in NumPy.

Visibility is found on a grid of 2 x 2 samples a pixel: every triangle becomes one span per row, so that only
covered samples are ever touched, and a maximum over (inverse depth, triangle) decides. Colours are computed
once a pixel, four times where the samples disagree, which is where edges are smoothed.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.geometry.camera import unpack
from pipeline.synthetic import hair
from pipeline.synthetic.paint import background
from pipeline.synthetic.scene import HAIR, Figure, Moment, normals, pose, shared_parts
from pipeline.synthetic.shading import View, shade, srgb

SAMPLES = 2  # per pixel and axis
BACKGROUND = 64  # pixels at which the background is computed; it is smooth
EDGE = 0.012  # jump in depth (world units) that makes a pixel an edge


@dataclass(frozen=True)
class Picture:
    """A drawn person, N x N pixels.

    The depth is in world units from the camera centre along the ray of the pixel centre, infinite where
    nothing is.
    """

    rgb: np.ndarray  # (N, N, 3) uint8 sRGB, with background
    alpha: np.ndarray  # (N, N) float32 in [0, 1]
    depth: np.ndarray  # (N, N) float32


def render(
    body: Figure,
    moment: Moment,
    camera_25: np.ndarray,
    size: int,
    room_33: np.ndarray | None = None,
) -> Picture:
    """The person at a moment through a camera, `size` x `size` pixels.

    The camera has 25 numbers in the head's own frame and any intrinsics. `room_33` turns the frame of the
    room, where the lights stand, into the head's; by default the room is the camera's frame.
    """
    cam2world, intrinsics = (matrix.astype(np.float64) for matrix in unpack(camera_25))
    rotation = cam2world[:3, :3]
    centre = cam2world[:3, 3]
    vertices = pose(body, moment)
    local = (vertices - centre) @ rotation
    depth_V = -local[:, 2]
    triangles = _Triangles.project(local, intrinsics, size * SAMPLES)
    covered_face, inverse = _visible(triangles, _drawn(body, triangles), size * SAMPLES)
    face = _by_sample(covered_face, size)
    inverse = _by_sample(inverse, size)
    covered = face >= 0

    edge = _edges(face, inverse)
    inner = np.flatnonzero(~edge & covered[0])
    rim = np.flatnonzero(edge)
    rim_sample, rim_at = np.nonzero(covered[:, rim])
    pixel = np.concatenate([inner, rim[rim_at]])
    chosen = np.concatenate([face[0, inner], face[rim_sample, rim[rim_at]]])
    # One point in the middle of an inner pixel, one at each covered sample of an edge.
    middles = np.full((len(inner), 2), SAMPLES / 2)
    samples = np.stack([rim_sample % SAMPLES, rim_sample // SAMPLES], axis=1) + 0.5
    corner = np.stack([pixel % size, pixel // size], axis=1) * SAMPLES
    weight = triangles.weights(chosen, corner + np.concatenate([middles, samples]))
    view = View(
        normal_V3=normals(vertices),
        room_33=rotation if room_33 is None else np.asarray(room_33, np.float64),
        eye_3=centre / np.linalg.norm(centre),
        pixel=float(np.median(depth_V)) / (intrinsics[0, 0] * size),
    )
    colours = shade(body, moment, chosen, weight, triangles.area[chosen] > 0, view)

    behind = srgb(background(body.person, BACKGROUND))
    image = cv2.resize(behind, (size, size), interpolation=cv2.INTER_LINEAR).reshape(-1, 3)
    image[inner] = colours[: len(inner)]
    rims = np.repeat(image[None, rim], SAMPLES**2, axis=0)
    rims[rim_sample, rim_at] = colours[len(inner) :]
    image[rim] = rims.mean(0)
    count = covered.sum(0)
    return Picture(
        rgb=(image * 255 + 0.5).astype(np.uint8).reshape(size, size, 3),
        alpha=(count / SAMPLES**2).astype(np.float32).reshape(size, size),
        depth=_distances(inverse, count, intrinsics, size),
    )


@dataclass(frozen=True)
class _Triangles:
    """The triangles of a person on the grid of samples, F of them."""

    corner: np.ndarray  # (F, 3, 2) samples
    inverse: np.ndarray  # (F, 3) inverse depths of the corners, which are linear over the picture
    ab: np.ndarray  # (F, 2) from the first corner to the second
    ac: np.ndarray  # (F, 2) to the third
    area: np.ndarray  # (F,) twice that, negative where the front is seen, as the image's y points down

    @classmethod
    def project(
        cls,
        local_V3: np.ndarray,
        intrinsics_33: np.ndarray,
        fine: int,
    ) -> "_Triangles":
        """Of vertices in the camera's frame; `fine` is the side of the picture in samples."""
        faces = shared_parts().faces
        depth_V = -local_V3[:, 2]
        across = local_V3[:, 0] / depth_V
        down = -local_V3[:, 1] / depth_V
        plane = np.stack([across, down], axis=1)
        screen = plane @ intrinsics_33[:2, :2].T + intrinsics_33[:2, 2]
        return cls.of((screen * fine)[faces], (1.0 / depth_V)[faces])

    @classmethod
    def of(cls, corner_F32: np.ndarray, inverse_F3: np.ndarray) -> "_Triangles":
        ab = corner_F32[:, 1] - corner_F32[:, 0]
        ac = corner_F32[:, 2] - corner_F32[:, 0]
        return cls(corner_F32, inverse_F3, ab, ac, area=_cross(ab, ac))

    def some(self, chosen: np.ndarray) -> "_Triangles":
        return self.of(self.corner[chosen], self.inverse[chosen])

    def weights(self, chosen: np.ndarray, point_N2: np.ndarray) -> np.ndarray:
        """Barycentric weights (N, 3) float32 of points of the picture in chosen triangles (N,).

        They are right in space, not in the picture.
        """
        to_point = point_N2 - self.corner[chosen, 0]
        second = _cross(to_point, self.ac[chosen]) / self.area[chosen]
        third = _cross(self.ab[chosen], to_point) / self.area[chosen]
        # What is linear in space is linear over the picture only after a division by the depth.
        flat = np.stack([1 - second - third, second, third], axis=1)
        weight = flat * self.inverse[chosen]
        return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


def _cross(a_N2: np.ndarray, b_N2: np.ndarray) -> np.ndarray:
    ax, ay = a_N2.T
    bx, by = b_N2.T
    return ax * by - ay * bx


def _drawn(body: Figure, triangles: _Triangles) -> np.ndarray:
    """The numbers of the triangles that may be seen."""
    shared = shared_parts()
    seen = np.where(shared.two_sided, np.abs(triangles.area) > 1e-9, triangles.area < -1e-9)
    drawn = seen & (triangles.inverse > 0).all(1)
    if hair.cover(body.person) == 0:
        drawn &= shared.material != HAIR
    return np.flatnonzero(drawn)


def _visible(
    every: _Triangles,
    drawn: np.ndarray,
    size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Triangle (-1: none) and inverse depth at every sample, both (size*size,)."""
    chosen = every.some(drawn)
    # The inverse depth is a plane over the picture: its slopes along x and y, by Cramer's rule.
    first = chosen.inverse[:, 0]
    rise = chosen.inverse[:, 1] - first
    rise2 = chosen.inverse[:, 2] - first
    abx, aby = chosen.ab.T
    acx, acy = chosen.ac.T
    by_x = (rise * acy - rise2 * aby) / chosen.area
    by_y = (rise2 * abx - rise * acx) / chosen.area
    face, row, start, last = _spans(chosen.corner, size)
    origin = chosen.corner[face, 0]
    along = (start + 0.5 - origin[:, 0]) * by_x[face]
    down = (row + 0.5 - origin[:, 1]) * by_y[face]
    base = first[face] + along + down
    length = last - start + 1
    step = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    change = step * np.repeat(by_x[face], length)
    inverse = (np.repeat(base, length) + change).astype(np.float32)
    place = np.repeat(row * size + start, length) + step
    # Positive floats sort like their bits: one maximum over depth and triangle, joined into 64 bits.
    bits = inverse.view(np.uint32).astype(np.uint64)
    number = np.repeat(face + 1, length).astype(np.uint64)
    best = np.zeros(size * size, np.uint64)
    np.maximum.at(best, place, bits << np.uint64(32) | number)
    winner = (best & np.uint64(0xFFFFFFFF)).astype(np.int64) - 1
    depth = (best >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return np.where(winner >= 0, drawn[winner], -1), depth


def _spans(corner_F32: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For every triangle and sample row that it covers: triangle, row, first and last covered column."""
    heights = corner_F32[..., 1]
    # Sample rows are at half numbers.
    top_row = np.ceil(heights.min(1) - 0.5)
    bottom_row = np.floor(heights.max(1) - 0.5)
    low = np.maximum(top_row, 0).astype(np.int64)
    high = np.minimum(bottom_row, size - 1).astype(np.int64)
    count = np.maximum(high - low + 1, 0)
    face = np.repeat(np.arange(len(count)), count)
    start = np.repeat(np.cumsum(count) - count, count)
    row = np.arange(len(face)) - start + low[face]
    y = row + 0.5
    left = np.full(len(face), np.inf)
    right = np.full(len(face), -np.inf)
    # A row enters and leaves a triangle where it crosses its sides.
    for k in range(3):
        a = corner_F32[:, k]
        b = corner_F32[:, (k + 1) % 3]
        rise = b[:, 1] - a[:, 1]
        slope = np.divide(
            b[:, 0] - a[:, 0],
            rise,
            out=np.zeros(len(rise)),
            where=rise != 0,
        )
        top = np.minimum(a[:, 1], b[:, 1])
        bottom = np.maximum(a[:, 1], b[:, 1])
        x = a[face, 0] + (y - a[face, 1]) * slope[face]
        crossing = (y >= top[face]) & (y <= bottom[face]) & (rise[face] != 0)
        left = np.where(crossing, np.minimum(left, x), left)
        right = np.where(crossing, np.maximum(right, x), right)
    first = _column(left, size).clip(0)
    last = (_column(right, size) - 1).clip(max=size - 1)
    kept = last >= first
    return face[kept], row[kept], first[kept], last[kept]


def _column(x: np.ndarray, size: int) -> np.ndarray:
    """The first column whose centre is at or beyond x."""
    return np.ceil(np.clip(x, -1, size + 1) - 0.5).astype(np.int64)


def _by_sample(values: np.ndarray, size: int) -> np.ndarray:
    """Values on the fine grid as (SAMPLES^2, size*size): one row per sample of a pixel."""
    grid = values.reshape(size, SAMPLES, size, SAMPLES)
    return grid.transpose(1, 3, 0, 2).reshape(SAMPLES**2, -1)


def _edges(face: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Which pixels are edges, bool: their samples show several materials, or depths with a jump."""
    material = np.where(face >= 0, shared_parts().material[face], -1)
    several = (material != material[0]).any(0)
    far = inverse.min(0)
    near = inverse.max(0)
    return several | (near - far > EDGE * near**2)


def _distances(
    inverse: np.ndarray,
    count: np.ndarray,
    intrinsics_33: np.ndarray,
    size: int,
) -> np.ndarray:
    """Distances along the rays (size, size) float32, from the mean inverse depth of the covered samples."""
    ray = np.linalg.inv(intrinsics_33)
    grid = (np.arange(size) + 0.5) / size
    # How much longer a ray is than its depth.
    u, v = grid[None], grid[:, None]
    across = ray[0, 0] * u + ray[0, 1] * v + ray[0, 2]
    down = ray[1, 1] * v + ray[1, 2]
    slope = np.sqrt(across**2 + down**2 + 1)
    along = np.full(size * size, np.inf, np.float32)
    hit = count > 0
    total = inverse.sum(0)
    along[hit] = slope.ravel()[hit] * count[hit] / total[hit]
    return along.reshape(size, size)
