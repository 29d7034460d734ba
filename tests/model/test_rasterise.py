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
    return rasterise(
        torch.from_numpy(np.float32(vertices))[None],
        torch.from_numpy(faces),
        torch.from_numpy(camera)[None],
        size,
    )


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
    flat = project(vertices, camera) * size - 0.5
    cam2world = camera[:16].reshape(4, 4)
    corner_depth = -((vertices - cam2world[:3, 3]) @ cam2world[:3, :3])[:, 2]
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1)
    pixels = grid.reshape(-1, 2).astype(np.float64)
    with_one = np.concatenate([pixels, np.ones((len(pixels), 1))], 1)
    depth = np.full(len(pixels), np.inf)
    at_edge = np.zeros(len(pixels), bool)
    for face in faces:
        for start, end in zip(flat[face], flat[np.roll(face, -1)], strict=True):
            edge = end - start
            share = (pixels - start) @ edge / max(edge @ edge, 1e-300)
            foot = start + np.clip(share, 0, 1)[:, None] * edge
            at_edge |= np.linalg.norm(pixels - foot, axis=1) < 1e-3
        system = np.vstack([flat[face].T, np.ones(3)])
        if abs(np.linalg.det(system)) < 1e-9:
            continue
        shares = np.linalg.solve(system, with_one.T).T
        inside = (shares >= 0).all(1)
        own_depth = 1 / (shares[inside] / corner_depth[face]).sum(1)
        depth[inside] = np.minimum(depth[inside], own_depth)
    return depth, at_edge, corner_depth


@pytest.mark.parametrize("seed", range(4))
def test_against_brute_force(seed: int) -> None:
    draw = np.random.default_rng(seed)
    vertices = draw.uniform(-0.5, 0.5, (24, 3)).astype(np.float32)
    faces, size = draw.integers(16, size=(24, 3)), 40
    camera = look_at(draw.uniform(-0.5, 0.5), 0.1, 4.2, np.zeros(3), 0.1)
    # The first ten have no area in the picture: corners in one place, on a line, or seen from the edge.
    faces[0, 2] = faces[0, 1]
    faces[1] = faces[1, 0]
    for number, face in enumerate(faces[2:6]):
        face[2] = 16 + number
        vertices[face[2]] = 0.4 * vertices[face[0]] + 0.6 * vertices[face[1]]
    eye = camera[[3, 7, 11]]
    for number, face in enumerate(faces[6:10]):
        face[1] = 20 + number
        vertices[face[1]] = eye + 0.95 * (vertices[face[0]] - eye)
    found = draw_mesh(vertices, faces, camera, size)
    wanted, at_edge, corner_depth = brute_force(vertices.astype(np.float64), faces, camera, size)
    depth = found.depth.flatten().double().numpy()
    face = found.face.flatten().numpy()
    weights = found.weights.reshape(-1, 3).double().numpy()
    assert at_edge.mean() < 0.05 and np.isfinite(wanted).mean() > 0.2
    assert np.array_equal(np.isfinite(depth), face >= 0)
    assert np.array_equal(face[~at_edge] >= 0, np.isfinite(wanted[~at_edge]))
    seen = ~at_edge & (face >= 0)
    assert np.abs(depth[seen] - wanted[seen]).max() < 1e-4
    # Triangles may share an edge, so the depth decides, not the index; the weights belong to the triangle
    # that is named.
    assert weights.min() >= 0 and np.abs(weights[seen].sum(1) - 1).max() < 1e-5
    by_weights = (weights * corner_depth[faces[face]]).sum(1)
    assert np.abs(by_weights[seen] - wanted[seen]).max() < 1e-3
    assert (weights[face < 0] == 0).all()
    assert not np.isin(face, range(10)).any()


def at_pixels(pixels: np.ndarray, size: int) -> np.ndarray:
    """Places that a camera in front at a distance of 4.2 sees at these pixels (x, y).

    Whole numbers are pixel centres.
    """
    u, v = ((pixels + 0.5) / size - 0.5).T * 4.2 / FOCAL
    return np.stack([u, -v, np.zeros_like(u)], 1)


IN_FRONT = look_at(0.0, 0.0, 4.2, np.zeros(3))


@pytest.mark.parametrize("size", [32, 200])
def test_a_line_through_pixel_centres_is_not_drawn(size: int) -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        start, end = draw.integers(size, size=(2, 2))
        third = start + draw.uniform(-0.3, 1.3) * (end - start)
        line = at_pixels(np.stack([start, end, third]), size)
        found = draw_mesh(line, np.array([[0, 1, 2]]), IN_FRONT, size)
        assert (found.face == -1).all()


def test_no_hole_where_edges_and_corners_lie_on_pixel_centres() -> None:
    size, side = 32, 8
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * 3 + 4
    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).ravel()
    upper = np.stack([corner, corner + 1, corner + side], 1)
    lower = np.stack([corner + 1, corner + side + 1, corner + side], 1)
    found = draw_mesh(at_pixels(places, size), np.concatenate([upper, lower]), IN_FRONT, size)
    assert (found.face[0, 5:25, 5:25] >= 0).all()
    assert (found.depth[0, 5:25, 5:25] - 4.2).abs().max() < 1e-5
    outside = found.face[0].clone()
    outside[4:26, 4:26] = -1
    assert (outside == -1).all()


def test_of_triangles_in_one_place_the_first_is_seen() -> None:
    corners = at_pixels(np.array([[2, 2], [14, 3], [5, 13]]), 16)
    found = draw_mesh(corners, np.array([[0, 1, 2], [0, 1, 2]]), IN_FRONT, 16)
    assert set(found.face.unique().tolist()) == {-1, 0}


def test_triangles_behind_the_camera_are_not_drawn() -> None:
    vertices = np.array([[-1.0, -1.0, 9.0], [1.0, -1.0, 9.0], [0.0, 1.0, 9.0]])
    found = draw_mesh(vertices, np.array([[0, 1, 2]]), IN_FRONT, 8)
    assert (found.face == -1).all() and found.depth.isinf().all()
