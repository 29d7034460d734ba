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
    cam2world, intrinsics = unpack(camera_25)
    cam2world = cam2world.astype(np.float64)
    intrinsics = intrinsics.astype(np.float64)
    rotation = cam2world[:3, :3]
    centre = cam2world[:3, 3]
    if room_33 is None:
        room_33 = rotation
    vertices = pose(body, moment)
    local = (vertices - centre) @ rotation
    fine = size * SAMPLES
    triangles = _Triangles.project(local, intrinsics, fine)
    drawn = _drawn(body, triangles)
    fine_face, fine_inverse = _visible(triangles, drawn, fine)
    inverse = _by_sample(fine_inverse, size)
    face = _by_sample(fine_face, size)
    # Colours take the most time, so that they are computed at visible points alone.
    points = _Points.of(face, inverse, size)
    weight = triangles.weights(points.face, points.place)
    depth_V = -local[:, 2]
    middle_depth = float(np.median(depth_V))
    view = View(
        normal_V3=normals(vertices),
        room_33=np.asarray(room_33, np.float64),
        eye_3=centre / np.linalg.norm(centre),
        pixel=middle_depth / (intrinsics[0, 0] * size),
    )
    back = triangles.area[points.face] > 0
    colours = shade(body, moment, points.face, weight, back, view)
    image = _backdrop(body, size)
    points.draw(colours, image)
    rgb = (image * 255 + 0.5).astype(np.uint8)
    count = (face >= 0).sum(0)
    alpha = (count / SAMPLES**2).astype(np.float32)
    return Picture(
        rgb=rgb.reshape(size, size, 3),
        alpha=alpha.reshape(size, size),
        depth=_distances(inverse, count, intrinsics, size),
    )


def _backdrop(body: Figure, size: int) -> np.ndarray:
    """The background in sRGB, (size*size, 3)."""
    # The background is smooth: enlarging a small one costs less than computing it at every pixel.
    small = srgb(background(body.person, BACKGROUND))
    wanted = (size, size)
    image = cv2.resize(small, wanted, interpolation=cv2.INTER_LINEAR)
    return image.reshape(-1, 3)


@dataclass(frozen=True)
class _Points:
    """Where colours are computed, P points in all.

    They are one in the middle of each inner pixel, then one at each covered sample of the pixels on edges.
    """

    inner: np.ndarray  # (I,) pixels within a surface
    rim: np.ndarray  # (R,) pixels on edges
    rim_sample: np.ndarray  # (P - I,) which sample of a pixel
    rim_at: np.ndarray  # (P - I,) its pixel, as an index into `rim`
    face: np.ndarray  # (P,) triangles
    place: np.ndarray  # (P, 2) in samples

    @classmethod
    def of(
        cls,
        face: np.ndarray,
        inverse: np.ndarray,
        size: int,
    ) -> "_Points":
        """From the triangle (-1: none) and the inverse depth at each sample, (SAMPLES^2, size*size)."""
        edge = _edges(face, inverse)
        covered = face >= 0
        inner = np.flatnonzero(~edge & covered[0])
        rim = np.flatnonzero(edge)
        on_rim = covered[:, rim]
        rim_sample, rim_at = np.nonzero(on_rim)
        rim_pixel = rim[rim_at]
        rim_face = face[rim_sample, rim_pixel]
        pixel = np.concatenate([inner, rim_pixel])
        corner = _column_and_row(pixel, size) * SAMPLES
        middle = SAMPLES / 2
        middles = np.full((len(inner), 2), middle)
        centres = _column_and_row(rim_sample, SAMPLES) + 0.5
        return cls(
            inner=inner,
            rim=rim,
            rim_sample=rim_sample,
            rim_at=rim_at,
            face=np.concatenate([face[0, inner], rim_face]),
            place=corner + np.concatenate([middles, centres]),
        )

    def draw(self, colour_P3: np.ndarray, image: np.ndarray) -> None:
        """Put the colours into an image (size*size, 3), whose old colours show between covered samples."""
        count = len(self.inner)
        image[self.inner] = colour_P3[:count]
        behind = image[None, self.rim]
        rims = np.repeat(behind, SAMPLES**2, axis=0)
        covered = (self.rim_sample, self.rim_at)
        rims[covered] = colour_P3[count:]
        image[self.rim] = rims.mean(0)


def _column_and_row(number_N: np.ndarray, width: int) -> np.ndarray:
    """(N, 2) of cells that are numbered row by row."""
    column = number_N % width
    row = number_N // width
    return np.stack([column, row], axis=1)


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
        scale = intrinsics_33[:2, :2].T
        middle = intrinsics_33[:2, 2]
        screen = plane @ scale + middle
        corner = (screen * fine)[faces]
        inverse = (1.0 / depth_V)[faces]
        return cls.of(corner, inverse)

    @classmethod
    def of(cls, corner_F32: np.ndarray, inverse_F3: np.ndarray) -> "_Triangles":
        first, second, third = corner_F32.swapaxes(0, 1)
        ab = second - first
        ac = third - first
        area = _cross(ab, ac)
        return cls(corner_F32, inverse_F3, ab, ac, area)

    def some(self, chosen: np.ndarray) -> "_Triangles":
        corner = self.corner[chosen]
        inverse = self.inverse[chosen]
        return self.of(corner, inverse)

    def weights(self, chosen: np.ndarray, point_N2: np.ndarray) -> np.ndarray:
        """Barycentric weights (N, 3) float32 of points of the picture in chosen triangles (N,).

        They are right in space, not in the picture.
        """
        area = self.area[chosen]
        ab = self.ab[chosen]
        ac = self.ac[chosen]
        to_point = point_N2 - self.corner[chosen, 0]
        second = _cross(to_point, ac) / area
        third = _cross(ab, to_point) / area
        first = 1 - second - third
        # What is linear in space is linear over the picture only after a division by the depth.
        flat = np.stack([first, second, third], axis=1)
        weight = flat * self.inverse[chosen]
        total = weight.sum(1, keepdims=True)
        return (weight / total).astype(np.float32)


def _cross(a_N2: np.ndarray, b_N2: np.ndarray) -> np.ndarray:
    ax, ay = a_N2.T
    bx, by = b_N2.T
    return ax * by - ay * bx


def _drawn(body: Figure, triangles: _Triangles) -> np.ndarray:
    """The numbers of the triangles that may be seen."""
    shared = shared_parts()
    # A triangle that is seen edge on covers no sample, and its weights would be divided by zero.
    front = triangles.area < -1e-9
    not_edge_on = np.abs(triangles.area) > 1e-9
    seen = np.where(shared.two_sided, not_edge_on, front)
    before_camera = (triangles.inverse > 0).all(1)
    drawn = seen & before_camera
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
    by_x, by_y = _slopes(chosen)
    spans = _Spans.of(chosen.corner, size)
    face = spans.face
    slope = by_x[face]
    # The inverse depth at the first sample of each span, from that of the first corner.
    x = spans.first + 0.5
    y = spans.row + 0.5
    corner_x, corner_y = chosen.corner[face, 0].T
    along = (x - corner_x) * slope
    down = (y - corner_y) * by_y[face]
    base = chosen.inverse[face, 0] + along + down
    # From spans to samples: what a span holds is repeated over its length.
    length = spans.last - spans.first + 1
    step = _count_up(length)
    change = step * np.repeat(slope, length)
    inverse = (np.repeat(base, length) + change).astype(np.float32)
    first_place = spans.row * size + spans.first
    place = np.repeat(first_place, length) + step
    number = np.repeat(face + 1, length)
    winner, nearest = _nearest(place, inverse, number, size)
    covered = winner >= 0
    visible = np.where(covered, drawn[winner], -1)
    return visible, nearest


def _slopes(triangles: _Triangles) -> tuple[np.ndarray, np.ndarray]:
    """How the inverse depth of triangles changes a sample to the right and a sample down, (F,) each."""
    # The inverse depth is a plane over the picture, so that Cramer's rule gives its slopes.
    first, second, third = triangles.inverse.T
    rise_b = second - first
    rise_c = third - first
    abx, aby = triangles.ab.T
    acx, acy = triangles.ac.T
    by_x = rise_b * acy - rise_c * aby
    by_y = rise_c * abx - rise_b * acx
    return by_x / triangles.area, by_y / triangles.area


def _nearest(
    place: np.ndarray,
    inverse: np.ndarray,
    number: np.ndarray,
    size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest triangle (from 0; -1: none) and its inverse depth at every sample, both (size*size,).

    A candidate has a sample (`place`), a positive inverse depth (float32) and a triangle (`number`, from 1).
    """
    # Positive floats sort like their bits: one maximum over depth and triangle, joined into 64 bits.
    bits = inverse.view(np.uint32).astype(np.uint64)
    triangle = number.astype(np.uint64)
    joined = bits << np.uint64(32) | triangle
    best = np.zeros(size * size, np.uint64)
    np.maximum.at(best, place, joined)
    triangle = best & np.uint64(0xFFFFFFFF)
    bits = best >> np.uint64(32)
    winner = triangle.astype(np.int64) - 1
    nearest = bits.astype(np.uint32).view(np.float32)
    return winner, nearest


def _count_up(length_N: np.ndarray) -> np.ndarray:
    """0, 1, ... up to each length, one run after the other, as one array of integers."""
    ends = np.cumsum(length_N)
    starts = np.repeat(ends - length_N, length_N)
    return np.arange(len(starts)) - starts


@dataclass(frozen=True)
class _Spans:
    """The parts of sample rows that triangles cover, N of them, all integers."""

    face: np.ndarray  # (N,) triangle
    row: np.ndarray  # (N,)
    first: np.ndarray  # (N,) covered column
    last: np.ndarray  # (N,)

    @classmethod
    def of(cls, corner_F32: np.ndarray, size: int) -> "_Spans":
        """Of triangles given by their corners in samples, within a picture of `size` x `size` samples."""
        heights = corner_F32[..., 1]
        # Sample rows are at half numbers.
        top_row = np.ceil(heights.min(1) - 0.5)
        bottom_row = np.floor(heights.max(1) - 0.5)
        low = np.maximum(top_row, 0).astype(np.int64)
        high = np.minimum(bottom_row, size - 1).astype(np.int64)
        rows = np.maximum(high - low + 1, 0)
        number = np.arange(len(rows))
        face = np.repeat(number, rows)
        row = _count_up(rows) + low[face]
        left, right = _ends(corner_F32, face, row + 0.5)
        first = _column(left, size).clip(0)
        last = _column(right, size) - 1
        last = last.clip(max=size - 1)
        kept = last >= first
        return cls(
            face=face[kept],
            row=row[kept],
            first=first[kept],
            last=last[kept],
        )


def _ends(
    corner_F32: np.ndarray,
    face_N: np.ndarray,
    y_N: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Where rows at heights `y_N` enter and leave triangles, x; (inf, -inf) where they miss them."""
    left = np.full(len(face_N), np.inf)
    right = np.full(len(face_N), -np.inf)
    # A row enters and leaves a triangle where it crosses its sides.
    for k in range(3):
        a = corner_F32[:, k]
        b = corner_F32[:, (k + 1) % 3]
        x, crossing = _crossings(a, b, face_N, y_N)
        left = np.where(crossing, np.minimum(left, x), left)
        right = np.where(crossing, np.maximum(right, x), right)
    return left, right


def _crossings(
    a_F2: np.ndarray,
    b_F2: np.ndarray,
    face_N: np.ndarray,
    y_N: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Where rows cross the sides from a to b of triangles: x, and whether they do (bool)."""
    ax, ay = a_F2.T
    bx, by = b_F2.T
    rise = by - ay
    flat = rise == 0
    slope = np.zeros(len(rise))
    np.divide(bx - ax, rise, out=slope, where=~flat)
    top = np.minimum(ay, by)
    bottom = np.maximum(ay, by)
    below_top = y_N >= top[face_N]
    above_bottom = y_N <= bottom[face_N]
    crossing = below_top & above_bottom & ~flat[face_N]
    from_a = y_N - ay[face_N]
    aside = from_a * slope[face_N]
    return ax[face_N] + aside, crossing


def _column(x: np.ndarray, size: int) -> np.ndarray:
    """The first column whose centre is at or beyond x."""
    # The clip keeps the ends of empty spans, which are infinite, within the range of integers.
    near = np.clip(x, -1, size + 1)
    return np.ceil(near - 0.5).astype(np.int64)


def _by_sample(values: np.ndarray, size: int) -> np.ndarray:
    """Values on the fine grid as (SAMPLES^2, size*size): one row per sample of a pixel."""
    grid = values.reshape(size, SAMPLES, size, SAMPLES)
    by_sample = grid.transpose(1, 3, 0, 2)
    return by_sample.reshape(SAMPLES**2, -1)


def _edges(face: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Which pixels are edges, bool: their samples show several materials, or depths with a jump."""
    material_F = shared_parts().material
    covered = face >= 0
    material = np.where(covered, material_F[face], -1)
    differs = material != material[0]
    several = differs.any(0)
    far = inverse.min(0)
    near = inverse.max(0)
    # A jump of the depth is a jump of the inverse depth, divided by its square.
    jump = near - far > EDGE * near**2
    return several | jump


def _distances(
    inverse: np.ndarray,
    count: np.ndarray,
    intrinsics_33: np.ndarray,
    size: int,
) -> np.ndarray:
    """Distances along the rays (size, size) float32, from the mean inverse depth of the covered samples."""
    grid = (np.arange(size) + 0.5) / size
    u = grid[None]
    v = grid[:, None]
    to_x, to_y, _ = np.linalg.inv(intrinsics_33)
    x_by_u, x_by_v, x_at_0 = to_x
    _, y_by_v, y_at_0 = to_y
    across = x_by_u * u + x_by_v * v + x_at_0
    down = y_by_v * v + y_at_0
    # A ray is longer than its depth, at the sides of the picture most.
    squared = across**2 + down**2 + 1
    longer = np.sqrt(squared).ravel()
    hit = count > 0
    total = inverse.sum(0)[hit]
    along = np.full(size * size, np.inf, np.float32)
    along[hit] = longer[hit] * count[hit] / total
    return along.reshape(size, size)
