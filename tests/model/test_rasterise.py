"""The rasteriser against brute force in double precision, triangles without area among the others."""

import numpy as np
import pytest
import torch

from model.head.rasterise import Raster, rasterise
from pipeline.geometry.camera import FOCAL, look_at, project


def draw_mesh(
    vertices: np.ndarray,
    faces: np.ndarray,
    camera: np.ndarray,
    size: int,
) -> Raster:
    single = np.float32(vertices)
    arrays = (single[None], faces, camera[None])
    return rasterise(*map(torch.from_numpy, arrays), size)


def brute_force(
    vertices: np.ndarray,
    faces: np.ndarray,
    camera: np.ndarray,
    size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every pixel (size * size): depth of the nearest triangle or infinite, and whether an edge is close.

    That is a thousandth of a pixel. Then the corners' depths. Double precision.
    """
    camera = camera.astype(np.float64)
    places = project(vertices, camera)
    flat = places * size - 0.5
    cam2world = camera[:16].reshape(4, 4)
    eye = cam2world[:3, 3]
    backwards = cam2world[:3, 2]
    corner_depth = (eye - vertices) @ backwards
    pixels = grid(size)
    ones = np.ones((len(pixels), 1))
    with_one = np.concatenate([pixels, ones], 1)
    depth = np.full(len(pixels), np.inf)
    at_edge = np.zeros(len(pixels), bool)
    for face in faces:
        corners = flat[face]
        following = np.roll(corners, -1, axis=0)
        for start, end in zip(corners, following, strict=True):
            at_edge |= distances(pixels, start, end) < 1e-3
        # Barycentric coordinates: the corners' mean with these weights is the pixel.
        system = np.vstack([corners.T, np.ones(3)])
        area2 = np.linalg.det(system)
        if abs(area2) < 1e-9:
            continue
        shares = np.linalg.solve(system, with_one.T).T
        inside = (shares >= 0).all(1)
        # Along a plane 1 / depth is linear in the picture.
        inverse = shares @ (1 / corner_depth[face])
        own_depth = 1 / inverse[inside]
        nearest = np.minimum(depth[inside], own_depth)
        depth[inside] = nearest
    return depth, at_edge, corner_depth


def grid(side: int) -> np.ndarray:
    """Whole numbers (side * side, 2) from 0 on, row by row."""
    steps = np.arange(side, dtype=np.float64)
    x, y = np.meshgrid(steps, steps)
    both = np.stack([x, y], -1)
    return both.reshape(-1, 2)


def distances(
    pixels: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
) -> np.ndarray:
    """Of pixels to a stretch between two points."""
    edge = end - start
    length2 = max(edge @ edge, 1e-300)
    to_pixel = pixels - start
    share = to_pixel @ edge / length2
    share = np.clip(share, 0, 1)
    rest = to_pixel - share[:, None] * edge
    return np.linalg.norm(rest, axis=1)


@pytest.mark.parametrize("seed", range(4))
def test_against_brute_force(seed: int) -> None:
    size = 40
    vertices, faces, camera = a_mesh(seed)
    found = draw_mesh(vertices, faces, camera, size)
    double = vertices.astype(np.float64)
    wanted, at_edge, corner_depth = brute_force(double, faces, camera, size)
    depth = found.depth.double().numpy().ravel()
    face = found.face.numpy().ravel()
    weights = found.weights.double().numpy()
    weights = weights.reshape(-1, 3)
    has_face = face >= 0
    has_depth = np.isfinite(wanted)
    assert at_edge.mean() < 0.05
    assert has_depth.mean() > 0.2
    assert np.array_equal(np.isfinite(depth), has_face)
    clear = ~at_edge
    assert np.array_equal(has_face[clear], has_depth[clear])
    seen = clear & has_face
    error = depth[seen] - wanted[seen]
    assert np.abs(error).max() < 1e-4
    # Triangles may share an edge, so the depth decides, not the index; the weights belong to the triangle
    # that is named.
    assert weights.min() >= 0
    assert not weights[~has_face].any()
    rest = weights[seen].sum(1) - 1
    assert np.abs(rest).max() < 1e-5
    own_faces = faces[face[seen]]
    weighted = weights[seen] * corner_depth[own_faces]
    error = weighted.sum(1) - wanted[seen]
    assert np.abs(error).max() < 1e-3
    without_area = np.isin(face, range(10))
    assert not without_area.any()


def a_mesh(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, faces and a camera.

    The first ten faces have no area in the picture: corners in one place, on a line, or seen from the edge.
    """
    draw = np.random.default_rng(seed)
    vertices = draw.uniform(-0.5, 0.5, (24, 3))
    vertices = vertices.astype(np.float32)
    faces = draw.integers(16, size=(24, 3))
    yaw = draw.uniform(-0.5, 0.5)
    camera = look_at(yaw, 0.1, 4.2, np.zeros(3), 0.1)
    first, second, *_ = faces
    first[2] = first[1]
    second[:] = second[0]
    for number, face in enumerate(faces[2:6], start=16):
        face[2] = number
        start = vertices[face[0]]
        end = vertices[face[1]]
        vertices[number] = 0.4 * start + 0.6 * end
    # From the eye two corners on one ray are one point.
    eye = camera[[3, 7, 11]]
    for number, face in enumerate(faces[6:10], start=20):
        face[1] = number
        to_first = vertices[face[0]] - eye
        vertices[number] = eye + 0.95 * to_first
    return vertices, faces, camera


def at_pixels(pixels: np.ndarray, size: int) -> np.ndarray:
    """Places that a camera in front at a distance of 4.2 sees at these pixels (x, y).

    Whole numbers are pixel centres.
    """
    from_centre = (pixels + 0.5) / size - 0.5
    u, v = from_centre.T * 4.2 / FOCAL
    zero = np.zeros_like(u)
    return np.stack([u, -v, zero], 1)


IN_FRONT = look_at(0.0, 0.0, 4.2, np.zeros(3))
ONE_FACE = np.array([[0, 1, 2]])


@pytest.mark.parametrize("size", [32, 200])
def test_a_line_through_pixel_centres_is_not_drawn(size: int) -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        start, end = draw.integers(size, size=(2, 2))
        along = draw.uniform(-0.3, 1.3)
        third = start + along * (end - start)
        pixels = np.stack([start, end, third])
        line = at_pixels(pixels, size)
        found = draw_mesh(line, ONE_FACE, IN_FRONT, size)
        assert (found.face == -1).all()


def test_no_hole_where_edges_and_corners_lie_on_pixel_centres() -> None:
    size, side = 32, 8
    pixels = grid(side) * 3 + 4
    places = at_pixels(pixels, size)
    # Each square of four places is two triangles.
    steps = np.arange(side - 1)
    corner = steps[:, None] * side + steps
    corner = corner.ravel()
    right = corner + 1
    below = corner + side
    upper = np.stack([corner, right, below], 1)
    opposite = below + 1
    lower = np.stack([right, opposite, below], 1)
    faces = np.concatenate([upper, lower])
    found = draw_mesh(places, faces, IN_FRONT, size)
    (face,) = found.face
    (depth,) = found.depth
    # The outermost pixels lie on the border, where rounding decides.
    inside = (slice(5, 25), slice(5, 25))
    error = depth[inside] - 4.2
    assert face[inside].min() >= 0
    assert error.abs().max() < 1e-5
    outside = face.clone()
    outside[4:26, 4:26] = -1
    assert (outside == -1).all()


def test_of_triangles_in_one_place_the_first_is_seen() -> None:
    pixels = np.array(
        [
            [2, 2],
            [14, 3],
            [5, 13],
        ]
    )
    corners = at_pixels(pixels, 16)
    twice = np.repeat(ONE_FACE, 2, axis=0)
    found = draw_mesh(corners, twice, IN_FRONT, 16)
    seen = found.face.unique().tolist()
    assert set(seen) == {-1, 0}


def test_triangles_behind_the_camera_are_not_drawn() -> None:
    corners = [
        [-1.0, -1.0, 9.0],
        [1.0, -1.0, 9.0],
        [0.0, 1.0, 9.0],
    ]
    vertices = np.array(corners)
    found = draw_mesh(vertices, ONE_FACE, IN_FRONT, 8)
    assert (found.face == -1).all()
    assert found.depth.isinf().all()
