"""Where the cameras of films and sheets stand, and that they look at the head."""

import numpy as np
import pytest

from pipeline.geometry import camera, camera_path

PATHS = [
    camera_path.yaw_sweep,
    camera_path.orbit,
    camera_path.turntable,
]


def places(cameras_N25: np.ndarray) -> np.ndarray:
    return cameras_N25[:, [3, 7, 11]]


def yaws(cameras_N25: np.ndarray) -> np.ndarray:
    x, _, z = places(cameras_N25).T
    return np.arctan2(-x, z)


def yawed(yaw: float) -> np.ndarray:
    """A camera that looks at the origin."""
    return camera.look_at(yaw, 0.0, 4.0, np.zeros(3))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("count", [0, 1, 7])
def test_paths_look_at_the_head_from_one_distance(path, count):
    cameras = path(count)
    assert cameras.shape == (count, 25)
    assert cameras.dtype == np.float32
    focus = camera_path.FOCUS[None]
    for one in cameras:
        (seen,) = camera.project(focus, one)
        assert seen == pytest.approx([0.5, 0.5], abs=1e-5)
    distances = np.linalg.norm(places(cameras), axis=1)
    assert np.allclose(distances, camera_path.RADIUS)


def test_the_frontal_camera_stands_still():
    cameras = camera_path.front(3)
    assert cameras.shape == (3, 25)
    assert (cameras == cameras[0]).all()
    assert np.allclose(yaws(cameras), 0.0)


def test_a_sweep_goes_from_side_to_side():
    narrow = camera_path.yaw_sweep(3, 0.4)
    assert np.allclose(yaws(narrow), [-0.4, 0.0, 0.4], atol=1e-6)


def test_the_yaws_of_a_sweep_are_those_of_its_cameras():
    sweep = camera_path.yaw_sweep(5)
    said = camera_path.sweep_yaws(5)
    assert np.allclose(yaws(sweep), said, atol=1e-6)


def test_an_orbit_can_be_repeated():
    """The step from the last camera to the first is no longer than the others around it."""
    around = places(camera_path.orbit(40))
    before = np.roll(around, 1, axis=0)
    steps = np.linalg.norm(around - before, axis=1)
    longest = max(steps[1], steps[-1])
    assert steps[0] <= 1.01 * longest


def test_an_orbit_reaches_as_far_as_it_says():
    found = yaws(camera_path.orbit(40))
    # Of 40 cameras the eleventh is at the far side itself.
    assert found.max() == pytest.approx(camera_path.REACH, abs=1e-6)
    assert found.min() == pytest.approx(-camera_path.REACH, abs=1e-6)


def test_a_turntable_goes_all_the_way_round():
    found = yaws(camera_path.turntable(8))
    # A yaw beyond half a turn comes back negative.
    whole = np.unwrap(found)
    wanted = np.arange(8) * np.pi / 4
    assert np.allclose(whole, wanted, atol=1e-6)


def test_the_angle_between_cameras_leaves_out_their_places():
    (front,) = camera_path.front(1)
    angle = camera.rotation_between(front, yawed(0.0))
    assert angle == pytest.approx(0.0, abs=1e-3)


def test_the_angle_between_cameras_is_in_degrees():
    # Cameras that look at the origin turn by their yaw.
    angle = camera.rotation_between(yawed(0.5), yawed(-0.5))
    assert angle == pytest.approx(np.degrees(1.0), abs=1e-3)
