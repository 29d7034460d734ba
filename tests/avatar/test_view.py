"""The interactive page: cameras of browsers, and pictures for them."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pipeline.avatar.studio import Studio
from pipeline.avatar.view import FIELD, browser_camera, view
from pipeline.geometry.camera import INTRINSICS, project
from pipeline.geometry.camera_path import FOCUS, RADIUS
from tests.avatar.inputs import draw_photo, params, save_networks

# A browser's camera in front of the head: half a turn about x has it look along -z with y up.
IN_FRONT = (np.array([0.0, 1.0, 0.0, 0.0]), np.array([0.0, 0.0, RADIUS]))
STILL = Rotation.identity()


def test_a_camera_in_front_sees_the_head_as_ours_does():
    camera = browser_camera(*IN_FRONT, FIELD, 1.0, STILL)
    assert np.allclose(camera[:16].reshape(4, 4)[:3, :3], np.eye(3), atol=1e-6)
    assert np.allclose(camera[16:].reshape(3, 3), INTRINSICS, atol=1e-4)
    # To the right of the viewer and above the middle.
    across, down = project(np.array([[0.1, 0.1, 0.0]]), camera)[0]
    assert across > 0.5 > down


def test_a_wide_window_shows_more_to_the_sides():
    point = np.array([[0.1, 0.1, 0.0]])
    square = project(point, browser_camera(*IN_FRONT, FIELD, 1.0, STILL))[0] - 0.5
    wide = project(point, browser_camera(*IN_FRONT, FIELD, 2.0, STILL))[0] - 0.5
    assert np.allclose(wide, square * [0.5, 1.0])


def test_a_turned_head_is_seen_as_it_would_be_by_a_camera_that_stands_still():
    turn = Rotation.from_euler("yx", [30, -10], degrees=True)
    nose = np.array([[0.02, -0.03, 0.3]])
    turned = turn.apply(nose - FOCUS) + FOCUS
    wanted = project(turned, browser_camera(*IN_FRONT, FIELD, 1.0, STILL))
    assert np.allclose(project(nose, browser_camera(*IN_FRONT, FIELD, 1.0, turn)), wanted, atol=1e-6)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    studio = Studio(params(), save_networks(folder))
    draw_photo(folder / "photo.png")
    viewer = view(studio, folder / "photo.png", None, 8321)
    yield viewer
    viewer.server.stop()


def test_the_page_draws_the_head_and_its_depth(page):
    camera = browser_camera(*IN_FRONT, FIELD, 1.0, STILL)
    avatar, animator = page.avatar, page.studio.animator
    [wanted] = animator.pictures(avatar, avatar.motion_1M, camera[None])
    assert np.array_equal(page.picture(camera), wanted)
    page.depth.value = True
    rays = animator.sizes.rays
    assert page.picture(camera).shape == (rays, rays, 3) and page.picture(camera).any()
    page.depth.value = False


def test_without_a_driver_there_is_one_frame_and_its_strength_changes_nothing(page):
    before = page.planes.triplanes_B3CRR
    page.strength.value = 0.5
    after = page._planes().triplanes_B3CRR
    assert page.frame.disabled and torch.allclose(after, before, atol=1e-4)
