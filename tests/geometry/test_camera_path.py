"""Where the cameras of films and sheets stand, and that they look at the head."""

import numpy as np
import pytest

from pipeline.geometry import camera, camera_path


def places(cameras_N25: np.ndarray) -> np.ndarray:
    return cameras_N25[:, [3, 7, 11]]


def yaws(cameras_N25: np.ndarray) -> np.ndarray:
    x, _, z = places(cameras_N25).T
    return np.arctan2(-x, z)


@pytest.mark.parametrize("path", [camera_path.yaw_sweep, camera_path.orbit, camera_path.turntable])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_paths_look_at_the_head_from_one_distance(path, count):
    cameras = path(count)
    assert cameras.shape == (count, 25)
    assert cameras.dtype == np.float32
    for one in cameras:
        (seen,) = camera.project(camera_path.FOCUS[None], one)
        assert seen == pytest.approx([0.5, 0.5], abs=1e-5)
    distances = np.linalg.norm(places(cameras), axis=1)
    assert np.allclose(distances, camera_path.RADIUS)


def test_the_frontal_camera_stands_still():
    cameras = camera_path.front(3)
    assert cameras.shape == (3, 25)
    assert (cameras == cameras[0]).all()
    assert np.allclose(yaws(cameras), 0.0)


def test_a_sweep_goes_from_side_to_side():
    assert np.allclose(yaws(camera_path.yaw_sweep(3, 0.4)), [-0.4, 0.0, 0.4], atol=1e-6)
    assert np.allclose(yaws(camera_path.yaw_sweep(5)), camera_path.sweep_yaws(5), atol=1e-6)


def test_an_orbit_can_be_repeated():
    """The step from the last camera to the first is no longer than the others around it."""
    cameras = places(camera_path.orbit(40))
    steps = np.linalg.norm(cameras - np.roll(cameras, 1, axis=0), axis=1)
    assert steps[0] <= 1.01 * max(steps[1], steps[-1])
    assert np.abs(yaws(camera_path.orbit(40))).max() == pytest.approx(camera_path.REACH, abs=1e-6)


def test_a_turntable_goes_all_the_way_round():
    found = np.unwrap(yaws(camera_path.turntable(8)))
    assert np.allclose(found, np.arange(8) * np.pi / 4, atol=1e-6)


def test_the_angle_between_cameras():
    front = camera_path.front(1)[0]
    also_front = camera.look_at(0.0, 0.0, 4.0, np.zeros(3))
    assert camera.rotation_between(front, also_front) == pytest.approx(0.0, abs=1e-3)
    # Cameras that look at the origin turn by their yaw.
    left = camera.look_at(0.5, 0.0, 4.0, np.zeros(3))
    right = camera.look_at(-0.5, 0.0, 4.0, np.zeros(3))
    assert camera.rotation_between(left, right) == pytest.approx(np.degrees(1.0), abs=1e-3)
