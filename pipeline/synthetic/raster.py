"""Drawing a generated person through any camera: a scan-line rasteriser in NumPy, shading at visible pixels, edges anti-aliased.

Visibility is found on a grid of 2 x 2 samples a pixel: every triangle becomes one span per row, so that only covered samples are ever
touched, and a maximum over (inverse depth, triangle) decides. Colours are computed once a pixel, four times where the samples disagree.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.geometry.camera import unpack
from pipeline.synthetic import hair
from pipeline.synthetic.paint import PAINTERS, Surfel, background
from pipeline.synthetic.person import Person
from pipeline.synthetic.scene import HAIR, Figure, Moment, normals, pose, shared_parts

SAMPLES = 2  # per pixel and axis
BACKGROUND = 64  # pixels at which the background is computed; it is smooth
EDGE = 0.012  # jump in depth (world units) that makes a pixel an edge


@dataclass(frozen=True)
class Picture:
    """A drawn person."""

    rgb: np.ndarray  # (N, N, 3) uint8 sRGB, with background
    alpha: np.ndarray  # (N, N) float32 in [0, 1]
    depth: np.ndarray  # (N, N) float32, world units from the camera centre along the ray of the pixel centre; inf where nothing is


def _spans(corner_F32: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For every triangle and sample row that it covers: triangle, row, first and last covered column."""
    low = np.maximum(np.ceil(corner_F32[..., 1].min(1) - 0.5), 0).astype(np.int64)
    high = np.minimum(np.floor(corner_F32[..., 1].max(1) - 0.5), size - 1).astype(np.int64)
    count = np.maximum(high - low + 1, 0)
    face = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count) + low[face]
    y = row + 0.5
    left, right = np.full(len(face), np.inf), np.full(len(face), -np.inf)
    for k in range(3):
        a, b = corner_F32[:, k], corner_F32[:, (k + 1) % 3]
        rise = b[:, 1] - a[:, 1]
        slope = np.divide(b[:, 0] - a[:, 0], rise, out=np.zeros(len(rise)), where=rise != 0)
        top, bottom = np.minimum(a[:, 1], b[:, 1]), np.maximum(a[:, 1], b[:, 1])
        x = a[face, 0] + (y - a[face, 1]) * slope[face]
        crossing = (y >= top[face]) & (y <= bottom[face]) & (rise[face] != 0)
        left = np.where(crossing, np.minimum(left, x), left)
        right = np.where(crossing, np.maximum(right, x), right)
    first = np.ceil(np.clip(left, -1, size + 1) - 0.5).astype(np.int64).clip(0)
    last = (np.ceil(np.clip(right, -1, size + 1) - 0.5) - 1).astype(np.int64).clip(max=size - 1)
    kept = last >= first
    return face[kept], row[kept], first[kept], last[kept]


def _visible(corner_F32: np.ndarray, inverse_F3: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Triangle (-1: none) and inverse depth at every sample, both (size*size,)."""
    a, b, c = (corner_F32[:, k] for k in range(3))
    ab, ac = b - a, c - a
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    rise, rise2 = inverse_F3[:, 1] - inverse_F3[:, 0], inverse_F3[:, 2] - inverse_F3[:, 0]
    by_x, by_y = (rise * ac[:, 1] - rise2 * ab[:, 1]) / area, (rise2 * ab[:, 0] - rise * ac[:, 0]) / area
    face, row, first, last = _spans(corner_F32, size)
    length = last - first + 1
    start = np.cumsum(length) - length
    base = (
        inverse_F3[face, 0] + (first + 0.5 - a[face, 0]) * by_x[face] + (row + 0.5 - a[face, 1]) * by_y[face]
    )
    step = np.arange(length.sum()) - np.repeat(start, length)
    inverse = (np.repeat(base, length) + step * np.repeat(by_x[face], length)).astype(np.float32)
    place = np.repeat(row * size + first, length) + step
    key = inverse.view(np.uint32).astype(np.uint64) << np.uint64(32) | np.repeat(face + 1, length).astype(
        np.uint64
    )
    best = np.zeros(size * size, np.uint64)  # positive floats sort like their bits
    np.maximum.at(best, place, key)
    return (best & np.uint64(0xFFFFFFFF)).astype(np.int64) - 1, (best >> np.uint64(32)).astype(
        np.uint32
    ).view(np.float32)


def _lights(person: Person, room_33: np.ndarray) -> list[tuple[np.ndarray, float, np.ndarray]]:
    """Key and fill light: unit direction in the head's frame, wrap, colour."""
    contrast = 0.55 + 0.5 * person.trait["contrast"]
    key = room_33 @ person.light
    fill = room_33 @ (np.array([-person.light[0], 0.15, 0.8]) / np.linalg.norm([person.light[0], 0.15, 0.8]))
    return [
        (key, 0.30, contrast * np.array([1.0, 0.96, 0.90])),
        (fill, 0.55, (0.62 - 0.3 * contrast) * np.array([0.88, 0.94, 1.0])),
    ]


@dataclass(frozen=True)
class _View:
    """What shading has to know of the view."""

    normal_V3: np.ndarray
    room_33: np.ndarray  # from the frame of the lights to the head's
    eye_3: np.ndarray  # unit vector to the camera
    pixel: float  # its size in world units


def _shade(
    body: Figure, moment: Moment, face_N: np.ndarray, weight_N3: np.ndarray, back_N: np.ndarray, view: _View
) -> np.ndarray:
    """sRGB in [0, 1], (N, 3), of points given by triangle and barycentric weights; `back_N`: the triangle is seen from behind."""
    shared, person = shared_parts(), body.person
    colour = np.zeros((len(face_N), 3), np.float32)
    corner, material = shared.faces[face_N], shared.material[face_N]
    table = np.column_stack([body.paint, view.normal_V3, shared.lip, shared.lid]).astype(np.float32)
    ambient = 0.30 + 0.06 * (1 - person.trait["contrast"])
    lights = _lights(person, view.room_33)
    for number, painter in enumerate(PAINTERS):
        chosen = np.flatnonzero(material == number)
        if len(chosen) == 0:
            continue
        turned = back_N[chosen]
        values = [table[corner[chosen, k]] * weight_N3[chosen, k, None] for k in range(3)]
        if number == HAIR:  # the seam at the back of the head: an angle of 0 there is one of 2 pi
            around = [table[corner[chosen, k], 1] for k in range(3)]
            seam = np.maximum(np.maximum(around[0], around[1]), around[2]) - np.pi
            for k in range(3):
                values[k][:, 1] += (
                    np.where(around[k] < seam, 2 * np.pi, 0).astype(np.float32) * weight_N3[chosen, k]
                )
        mixed = values[0] + values[1] + values[2]
        normal = mixed[:, 3:6]
        length = np.sqrt(np.einsum("nc,nc->n", normal, normal) + 1e-12)
        normal = normal * (np.where(turned, -1, 1) / length).astype(np.float32)[:, None]
        coat = painter(person, moment, Surfel(mixed[:, :3], normal, mixed[:, 6], mixed[:, 7], view.pixel))
        up = view.room_33[:, 1].astype(np.float32)
        light = (ambient + 0.10 * (normal @ up))[:, None] * np.array([0.95, 0.98, 1.04], np.float32)
        shine = np.zeros(len(chosen), np.float32)
        for direction, wrap, strength in lights:
            facing = normal @ direction.astype(np.float32)
            # red light goes deeper into skin and hair, so it wraps further around
            reach = np.clip(
                (facing[:, None] + np.array([wrap + 0.12, wrap, wrap - 0.04], np.float32)) / (1 + wrap),
                0,
                None,
            )
            light += reach * strength.astype(np.float32)
            half = direction + view.eye_3
            half = (half / np.linalg.norm(half)).astype(np.float32)
            shine += np.clip(normal @ half, 0, 1) ** coat.sharpness * float(strength.mean())
        dim = np.where(turned, np.float32(0.55), np.float32(1.0)) * coat.occlusion
        colour[chosen] = coat.albedo * light * dim[:, None] + (coat.gloss * shine * dim)[:, None]
    return srgb(colour)


def srgb(colour: np.ndarray) -> np.ndarray:
    """Linear light to sRGB in [0, 1] with soft highlights."""
    return np.clip(np.where(colour < 0.7, colour, 0.7 + 0.3 * np.tanh((colour - 0.7) / 0.3)), 0, 1) ** (
        1 / 2.2
    )


def render(
    body: Figure, moment: Moment, camera_25: np.ndarray, size: int, room_33: np.ndarray | None = None
) -> Picture:
    """The person at a moment through a camera (25 numbers in the head's own frame, any intrinsics), `size` x `size` pixels.

    `room_33` turns the frame of the room, where the lights stand, into the head's; by default the room is the camera's frame.
    """
    shared, person = shared_parts(), body.person
    cam2world, intrinsics = (m.astype(np.float64) for m in unpack(camera_25))
    rotation, centre = cam2world[:3, :3], cam2world[:3, 3]
    room = rotation if room_33 is None else np.asarray(room_33, np.float64)
    vertices = pose(body, moment)
    local = (vertices - centre) @ rotation
    depth_V = -local[:, 2]
    plane = np.stack([local[:, 0] / depth_V, -local[:, 1] / depth_V], 1)
    screen = plane @ intrinsics[:2, :2].T + intrinsics[:2, 2]
    fine = size * SAMPLES
    corner = (screen * fine)[shared.faces]
    inverse = (1.0 / depth_V)[shared.faces]
    ab, ac = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    drawn = np.where(shared.two_sided, np.abs(area) > 1e-9, area < -1e-9) & (inverse > 0).all(
        1
    )  # the image's y points down
    if hair.cover(person) == 0:
        drawn &= shared.material != HAIR
    drawn = np.flatnonzero(drawn)
    face, seen = _visible(corner[drawn], inverse[drawn], fine)
    face = _by_sample(np.where(face >= 0, drawn[face], -1), size)
    seen = _by_sample(seen, size)
    material = np.where(face >= 0, shared.material[face], -1)
    covered = face >= 0
    far, near, edge = seen[0], seen[0], np.zeros(size * size, bool)
    for k in range(1, SAMPLES**2):
        far, near, edge = (
            np.minimum(far, seen[k]),
            np.maximum(near, seen[k]),
            edge | (material[k] != material[0]),
        )
    edge |= near - far > EDGE * near**2
    inner, rim = np.flatnonzero(~edge & covered[0]), np.flatnonzero(edge)
    rim_sample, rim_at = np.nonzero(covered[:, rim])
    pixel = np.concatenate([inner, rim[rim_at]])
    chosen = np.concatenate([face[0, inner], face[rim_sample, rim[rim_at]]])
    offset = np.concatenate(
        [
            np.full((len(inner), 2), SAMPLES / 2),
            np.stack([rim_sample % SAMPLES, rim_sample // SAMPLES], 1) + 0.5,
        ]
    )
    point = np.stack([pixel % size, pixel // size], 1) * SAMPLES + offset
    a, u, v = corner[chosen, 0], ab[chosen], ac[chosen]
    to = point - a
    w1 = (to[:, 0] * v[:, 1] - to[:, 1] * v[:, 0]) / area[chosen]
    w2 = (u[:, 0] * to[:, 1] - u[:, 1] * to[:, 0]) / area[chosen]
    weight = np.stack([1 - w1 - w2, w1, w2], 1) * inverse[chosen]
    weight = (weight / weight.sum(1, keepdims=True)).astype(np.float32)
    pixel_size = float(np.median(depth_V)) / (intrinsics[0, 0] * size)
    view = _View(normals(vertices), room, centre / np.linalg.norm(centre), pixel_size)
    colours = _shade(body, moment, chosen, weight, area[chosen] > 0, view)
    image = cv2.resize(
        srgb(background(person, BACKGROUND)), (size, size), interpolation=cv2.INTER_LINEAR
    ).reshape(-1, 3)
    image[inner] = colours[: len(inner)]
    rims = np.repeat(image[None, rim], SAMPLES**2, axis=0)
    rims[rim_sample, rim_at] = colours[len(inner) :]
    image[rim] = rims.mean(0)
    count = covered.sum(0)
    ray = np.linalg.inv(intrinsics)
    grid = (np.arange(size) + 0.5) / size
    slope = np.sqrt(
        (ray[0, 0] * grid[None] + ray[0, 1] * grid[:, None] + ray[0, 2]) ** 2
        + (ray[1, 1] * grid[:, None] + ray[1, 2]) ** 2
        + 1
    )
    along = np.full(size * size, np.inf, np.float32)
    hit = count > 0
    along[hit] = slope.ravel()[hit] * count[hit] / seen.sum(0)[hit]
    return Picture(
        rgb=(image * 255 + 0.5).astype(np.uint8).reshape(size, size, 3),
        alpha=(count / SAMPLES**2).astype(np.float32).reshape(size, size),
        depth=along.reshape(size, size),
    )


def _by_sample(values: np.ndarray, size: int) -> np.ndarray:
    """Values on the fine grid as (SAMPLES^2, size*size): one row per sample of a pixel."""
    return np.stack(
        [
            values.reshape(size * SAMPLES, -1)[j::SAMPLES, i::SAMPLES].ravel()
            for j in range(SAMPLES)
            for i in range(SAMPLES)
        ]
    )
