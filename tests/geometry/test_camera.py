"""The conventions of facts 2.1, by hand."""

import math

import numpy as np
import pytest
import torch

from pipeline.core.seeds import rng
from pipeline.geometry import camera, label

ORIGIN = np.zeros(3)
MIDDLE = [0.5, 0.5]  # of an image, in fractions of it


def frontal(radius: float = 4.0) -> np.ndarray:
    return camera.look_at(0.0, 0.0, radius, ORIGIN)


def seen(camera_25: np.ndarray, *point: float) -> np.ndarray:
    """Where a camera sees one point, (2,)."""
    points = np.array([point])
    return camera.project(points, camera_25)[0]


def sampled(label: str, count: int) -> np.ndarray:
    """Cameras of the look-at distribution, (N, 25)."""
    draw = rng(0, label)
    cameras = [camera.sample_look_at(draw) for _ in range(count)]
    return np.stack(cameras)


def test_field_of_view_is_twelve_degrees():
    assert pytest.approx(4.757182, abs=1e-6) == camera.FOCAL


def test_the_frontal_camera_has_no_rotation():
    cam2world, intrinsics = camera.unpack(frontal())
    wanted = np.eye(4)
    wanted[2, 3] = 4
    principal_point = intrinsics[:2, 2]
    assert np.allclose(cam2world, wanted)
    assert np.allclose(principal_point, MIDDLE)


# The camera is 4 away from the origin, the point 0.1 to the right and 0.2 up:
# u = 0.5 + f * 0.1 / distance, v = 0.5 - f * 0.2 / distance.
@pytest.mark.parametrize(("z", "distance"), [(0.0, 4), (1.0, 3)])
def test_a_point_projected_by_hand(z, distance):
    focal = 4.757182
    u = 0.5 + focal * 0.1 / distance
    v = 0.5 - focal * 0.2 / distance
    found = seen(frontal(), 0.1, 0.2, z)
    assert found == pytest.approx([u, v], abs=1e-6)


def test_yaw_turns_the_camera_to_the_left_and_elevation_follows_the_arcsine():
    yaw, vertical, radius = 0.5, 0.4, 4.2
    turned = camera.look_at(yaw, vertical, radius, ORIGIN)
    cam2world, _ = camera.unpack(turned)
    sine = 2 * vertical / math.pi
    horizontal = radius * math.cos(math.asin(sine))
    wanted = [
        -horizontal * math.sin(yaw),
        radius * sine,
        horizontal * math.cos(yaw),
    ]
    place = cam2world[:3, 3]
    assert place == pytest.approx(wanted, abs=1e-6)


def test_the_camera_looks_at_its_target_and_rolls():
    target = np.array([0.02, -0.01, 0.1])
    rolled = camera.look_at(-0.6, 0.3, 3.9, target, roll=0.2)
    assert seen(rolled, *target) == pytest.approx(MIDDLE, abs=1e-6)
    # The camera's top leans to the right, so the world's leans to the left.
    tilted = camera.look_at(0.0, 0.0, 4.0, ORIGIN, roll=0.2)
    u, _ = seen(tilted, 0.0, 0.3, 0.0)
    assert u < 0.5


def test_batches_project_as_single_points_do():
    cameras = sampled("cameras", 5)
    points = 0.3 * rng(0, "points").normal(size=(5, 7, 3))
    batch = torch.from_numpy(points).float()
    found = label.project_batch(batch, torch.from_numpy(cameras))
    for mine, point, one in zip(found.numpy(), points, cameras, strict=True):
        alone = camera.project(point, one)
        assert np.allclose(mine, alone, atol=1e-5)


def test_look_at_cameras_stay_in_the_official_range():
    cameras = sampled("range", 500)
    places = cameras[:, [3, 7, 11]]
    radius = np.linalg.norm(places, axis=1)
    assert radius.min() >= 3.65
    assert radius.max() <= 4.45
    sine = places[:, 1] / radius
    elevation = np.degrees(np.arcsin(sine))
    assert elevation.min() >= -9.2
    assert elevation.max() <= 24.5


# A stretched axis and a mirror image.
@pytest.mark.parametrize("diagonal", [(1.0, 1.0, 2.0, 1.0), (1.0, 1.0, -1.0, 1.0)])
def test_a_matrix_that_is_no_rotation_is_refused(diagonal):
    matrix = np.diag(diagonal)
    with pytest.raises(ValueError, match="no proper rotation"):
        camera.pack(matrix)
