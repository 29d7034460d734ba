"""The conventions of facts 2.1, by hand."""

import math

import numpy as np
import pytest
import torch

from pipeline.core.seeds import rng
from pipeline.geometry import camera, label


def frontal(radius: float = 4.0) -> np.ndarray:
    return camera.look_at(0.0, 0.0, radius, np.zeros(3))


def test_field_of_view_is_twelve_degrees():
    assert pytest.approx(4.757182, abs=1e-6) == camera.FOCAL


def test_the_frontal_camera_has_no_rotation():
    cam2world, intrinsics = camera.unpack(frontal())
    wanted = np.eye(4)
    wanted[2, 3] = 4
    assert np.allclose(cam2world, wanted)
    assert np.allclose(intrinsics[:2, 2], 0.5)


def test_a_point_projected_by_hand():
    # 4 away, 0.1 to the right and 0.2 up: u = 0.5 + f * 0.1 / 4, v = 0.5 - f * 0.2 / 4.
    focal = 4.757182
    found = camera.project(np.array([[0.1, 0.2, 0.0]]), frontal())[0]
    assert found == pytest.approx([0.5 + focal * 0.1 / 4, 0.5 - focal * 0.2 / 4], abs=1e-6)
    closer = camera.project(np.array([[0.1, 0.2, 1.0]]), frontal())[0]
    assert closer == pytest.approx([0.5 + focal * 0.1 / 3, 0.5 - focal * 0.2 / 3], abs=1e-6)


def test_yaw_turns_the_camera_to_the_left_and_elevation_follows_the_arcsine():
    cam2world, _ = camera.unpack(camera.look_at(0.5, 0.4, 4.2, np.zeros(3)))
    elevation = math.asin(2 * 0.4 / math.pi)
    horizontal = 4.2 * math.cos(elevation)
    wanted = [-horizontal * math.sin(0.5), 4.2 * 2 * 0.4 / math.pi, horizontal * math.cos(0.5)]
    assert cam2world[:3, 3] == pytest.approx(wanted, abs=1e-6)


def test_the_camera_looks_at_its_target_and_rolls():
    target = np.array([0.02, -0.01, 0.1])
    seen = camera.look_at(-0.6, 0.3, 3.9, target, roll=0.2)
    assert camera.project(target[None], seen)[0] == pytest.approx([0.5, 0.5], abs=1e-6)
    # The camera's top leans to the right, so the world's leans to the left.
    tilted = camera.look_at(0.0, 0.0, 4.0, np.zeros(3), roll=0.2)
    above = camera.project(np.array([[0.0, 0.3, 0.0]]), tilted)[0]
    assert above[0] < 0.5


def test_batches_project_as_single_points_do():
    draw = rng(0, "cameras")
    cameras = np.stack([camera.sample_look_at(draw) for _ in range(5)])
    points = draw.normal(size=(5, 7, 3)) * 0.3
    found = label.project_batch(torch.from_numpy(points).float(), torch.from_numpy(cameras))
    for mine, point, one in zip(found.numpy(), points, cameras, strict=True):
        assert np.allclose(mine, camera.project(point, one), atol=1e-5)


def test_look_at_cameras_stay_in_the_official_range():
    draw = rng(3, "range")
    cameras = np.stack([camera.sample_look_at(draw) for _ in range(500)])
    places = cameras[:, [3, 7, 11]]
    radius = np.linalg.norm(places, axis=1)
    assert radius.min() >= 3.65
    assert radius.max() <= 4.45
    elevation = np.degrees(np.arcsin(places[:, 1] / radius))
    assert elevation.min() >= -9.2
    assert elevation.max() <= 24.5


def test_a_matrix_that_is_no_rotation_is_refused():
    with pytest.raises(ValueError, match="no proper rotation"):
        camera.pack(np.diag([1.0, 1.0, 2.0, 1.0]))
