import numpy as np
import pytest
from PIL import Image

from pipeline.ingest.crop import TEMPLATE_53, cut, fit_crop, five_points, smooth_crops, to_aligned, widen


def test_crop_of_the_template_itself():
    points = np.array([300.0, 200.0]) + 90.0 * TEMPLATE_53[:, :2] * [
        1,
        -1,
    ]  # half the official size, centred at (300, 200)
    crop = fit_crop(points)
    assert 1 / crop[0] == pytest.approx(256.0)  # 512 pixels hold 180 pixels a unit
    np.testing.assert_allclose(to_aligned(np.array([300.0, 200.0]), crop), [0.5, 0.5], atol=1e-12)


@pytest.mark.parametrize(
    # Pupils, nose tip and mouth corners of two portraits of the official example set, pixels of their 512 x
    # 512 frames.
    "points",
    [
        [[183.2, 231.5], [292.1, 216.4], [232.7, 282.0], [197.6, 345.2], [296.9, 332.6]],
        [[170.9, 262.0], [265.0, 205.4], [230.1, 288.8], [230.4, 360.1], [312.5, 311.4]],
    ],
)
def test_official_portraits_are_in_their_own_frame(points):
    crop = fit_crop(np.array(points))
    assert 1 / crop[0] == pytest.approx(512, abs=1)
    np.testing.assert_allclose(crop[1:], [0, 0], atol=0.002)


def test_head_rotation_in_the_picture_is_not_undone():
    turn = np.array([[0.9, -0.4], [0.4, 0.9]]) / np.hypot(0.9, 0.4)
    straight, tilted = fit_crop(100 * TEMPLATE_53[:, :2]), fit_crop(100 * TEMPLATE_53[:, :2] @ turn.T)
    assert tilted[0] == pytest.approx(straight[0], rel=1e-9)


def test_five_points_order():
    mesh = np.arange(478)[:, None] * np.ones(3)
    np.testing.assert_array_equal(five_points(mesh)[:, 0], [468, 473, 2.5, 61, 291])


def test_cut_of_the_whole_picture_is_the_picture(rng):
    image = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(cut(image, np.array([1 / 40, 0, 0]), 40), image)


def test_cut_puts_a_point_where_the_crop_says():
    image = np.zeros((200, 300), np.uint8)
    image[120:124, 200:204] = 255  # its centre is (202, 122)
    crop = np.array([1 / 80, 0.5 - 190 / 80, 0.5 - 130 / 80])
    small = cut(image, crop, 160).astype(float)
    rows, columns = np.mgrid[:160, :160] + 0.5
    centre = np.array([(small * columns).sum(), (small * rows).sum()]) / small.sum() / 160
    np.testing.assert_allclose(centre, to_aligned(np.array([202.0, 122.0]), crop), atol=0.002)


def test_cut_repeats_the_border():
    image = np.full((10, 10, 3), 50, np.uint8)
    image[0] = 200
    framed = cut(image, np.array([1 / 30, 1 / 3, 1 / 3]), 30)
    assert (framed[:9] == 200).all() and (framed[14:] == 50).all()


def test_widen_keeps_the_centre():
    crop = np.array([0.01, -0.3, 0.1])
    centre = (0.5 - crop[1:]) / crop[0]
    wide = widen(crop, 1.5)
    np.testing.assert_allclose(to_aligned(centre, wide), [0.5, 0.5])
    assert wide[0] == pytest.approx(crop[0] / 1.5)


def _crops(centres, sides):
    return np.stack([1 / sides, 0.5 - centres[:, 0] / sides, 0.5 - centres[:, 1] / sides], axis=1)


def test_smoothing_keeps_even_motion_and_removes_jitter(rng):
    seconds = np.cumsum(rng.uniform(0.02, 0.06, 60))  # variable frame rate
    sides = 200 * np.exp(0.1 * seconds)
    centres = np.stack([100 + 30 * seconds, 80 - 10 * seconds], axis=1)
    even = _crops(centres, sides)
    found = smooth_crops(even, seconds)
    np.testing.assert_allclose((0.5 - found[:, 1:]) / found[:, :1], centres, atol=1e-6)
    np.testing.assert_allclose(1 / found[:, 0], sides, rtol=1e-9)
    noisy = smooth_crops(_crops(centres + rng.normal(0, 2, (60, 2)), sides), seconds)
    assert np.abs((0.5 - noisy[5:-5, 1:]) / noisy[5:-5, :1] - centres[5:-5]).mean() < 1.0


def test_smoothing_stops_at_a_cut():
    seconds = np.arange(20) / 25
    centres = np.where(np.arange(20)[:, None] < 10, 100.0, 300.0) * np.ones((20, 2))
    crops = _crops(centres, np.full(20, 150.0))
    np.testing.assert_allclose(smooth_crops(crops, seconds), crops, atol=1e-9)


def test_smoothing_of_one_frame():
    crops = _crops(np.array([[5.0, 6.0]]), np.array([50.0]))
    np.testing.assert_allclose(smooth_crops(crops, np.array([0.4])), crops)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_antialiasing():
    stripes = np.tile(np.array([0, 255], np.uint8), (256, 128))
    small = cut(stripes, np.array([1 / 256, 0, 0]), 32, Image.Resampling.LANCZOS)
    assert np.abs(small[:, 2:-2].astype(int) - 127).max() <= 3
