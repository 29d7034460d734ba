"""The square around a face: where it lies, what it cuts out of the picture, how it stays calm over time."""

import numpy as np
import pytest
from PIL import Image

from pipeline.ingest.crop import (
    CHIN,
    CROWN,
    FOREHEAD,
    TEMPLATE_53,
    cut,
    fit_crop,
    five_points,
    inside,
    outside_share,
    smooth_crops,
    to_aligned,
    widen,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def centres_of(crops_N3):
    """The centres of squares, (N, 2), in pixels of the picture."""
    scale_N1 = crops_N3[:, :1]
    shift_N2 = crops_N3[:, 1:]
    return (0.5 - shift_N2) / scale_N1


def crops_of(centres_N2, sides_N):
    """Crops (N, 3) of squares with these centres and sides in pixels."""
    scale_N1 = 1 / sides_N[:, None]
    shift_N2 = 0.5 - centres_N2 * scale_N1
    return np.concatenate([scale_N1, shift_N2], axis=1)


def test_crop_of_the_template_itself():
    # Half the official size, with the centre at (300, 200).
    y_down = TEMPLATE_53[:, :2] * [1, -1]
    centre = np.array([300.0, 200.0])
    crop = fit_crop(centre + 90.0 * y_down)
    # 512 pixels hold 180 pixels a unit.
    assert 1 / crop[0] == pytest.approx(256.0)
    aligned = to_aligned(centre, crop)
    np.testing.assert_allclose(aligned, [0.5, 0.5], atol=1e-12)


@pytest.mark.parametrize(
    # Pupils, nose tip and mouth corners of two portraits of the official example set, pixels of their
    # 512 x 512 frames.
    "points",
    [
        [
            [183.2, 231.5],
            [292.1, 216.4],
            [232.7, 282.0],
            [197.6, 345.2],
            [296.9, 332.6],
        ],
        [
            [170.9, 262.0],
            [265.0, 205.4],
            [230.1, 288.8],
            [230.4, 360.1],
            [312.5, 311.4],
        ],
    ],
)
def test_official_portraits_are_in_their_own_frame(points):
    crop = fit_crop(np.array(points))
    assert 1 / crop[0] == pytest.approx(512, abs=1)
    np.testing.assert_allclose(crop[1:], [0, 0], atol=0.002)


def test_head_rotation_in_the_picture_is_not_undone():
    turn = np.array([[0.9, -0.4], [0.4, 0.9]])
    turn /= np.hypot(0.9, 0.4)
    points = 100 * TEMPLATE_53[:, :2]
    straight = fit_crop(points)
    tilted = fit_crop(points @ turn.T)
    assert tilted[0] == pytest.approx(straight[0], rel=1e-9)


def test_five_points_order():
    # Each point has its number for all of its coordinates.
    numbers = np.arange(478)
    mesh = np.stack([numbers] * 3, axis=1)
    points = five_points(mesh)
    np.testing.assert_array_equal(points[:, 0], [468, 473, 2.5, 61, 291])


def test_cut_of_the_whole_picture_is_the_picture(rng):
    image = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
    whole = np.array([1 / 40, 0, 0])
    np.testing.assert_array_equal(cut(image, whole, 40), image)


def test_cut_puts_a_point_where_the_crop_says():
    image = np.zeros((200, 300), np.uint8)
    # The centre of the square is (202, 122).
    image[120:124, 200:204] = 255
    crop = np.array([1 / 80, 0.5 - 190 / 80, 0.5 - 130 / 80])
    small = cut(image, crop, 160).astype(float)
    weight = small / small.sum()
    centres = (np.arange(160) + 0.5) / 160
    x = weight.sum(axis=0) @ centres
    y = weight.sum(axis=1) @ centres
    middle = np.array([202.0, 122.0])
    wanted = to_aligned(middle, crop)
    np.testing.assert_allclose([x, y], wanted, atol=0.002)


def test_cut_repeats_the_border():
    image = np.full((10, 10, 3), 50, np.uint8)
    image[0] = 200
    crop = np.array([1 / 30, 1 / 3, 1 / 3])
    framed = cut(image, crop, 30)
    assert (framed[:9] == 200).all()
    assert (framed[14:] == 50).all()


def test_antialiasing():
    pair = np.array([0, 255], np.uint8)
    stripes = np.tile(pair, (256, 128))
    whole = np.array([1 / 256, 0, 0])
    small = cut(stripes, whole, 32, Image.Resampling.LANCZOS)
    inner = small[:, 2:-2].astype(int)
    assert np.abs(inner - 127).max() <= 3


def test_widen_keeps_the_centre():
    crop = np.array([0.01, -0.3, 0.1])
    centre = (0.5 - crop[1:]) / crop[0]
    wide = widen(crop, 1.5)
    found = to_aligned(centre, wide)
    np.testing.assert_allclose(found, [0.5, 0.5])
    assert wide[0] == pytest.approx(crop[0] / 1.5)


def test_smoothing_keeps_even_motion_and_removes_jitter(rng):
    # The frame rate varies.
    steps = rng.uniform(0.02, 0.06, 60)
    seconds = np.cumsum(steps)
    sides = 200 * np.exp(0.1 * seconds)
    x = 100 + 30 * seconds
    y = 80 - 10 * seconds
    centres = np.stack([x, y], axis=1)
    crops = crops_of(centres, sides)
    even = smooth_crops(crops, seconds)
    np.testing.assert_allclose(centres_of(even), centres, atol=1e-6)
    np.testing.assert_allclose(1 / even[:, 0], sides, rtol=1e-9)
    jitter = rng.normal(0, 2, (60, 2))
    shaken = crops_of(centres + jitter, sides)
    calm = smooth_crops(shaken, seconds)
    error = np.abs(centres_of(calm) - centres)
    assert error[5:-5].mean() < 1.0


def test_smoothing_stops_at_a_cut():
    frames = np.arange(20)
    x = np.where(frames < 10, 100.0, 300.0)
    centres = np.stack([x, x], axis=1)
    sides = np.full(20, 150.0)
    crops = crops_of(centres, sides)
    smoothed = smooth_crops(crops, frames / 25)
    np.testing.assert_allclose(smoothed, crops, atol=1e-9)


def test_smoothing_of_one_frame():
    centre = np.array([[5.0, 6.0]])
    crops = crops_of(centre, np.array([50.0]))
    alone = smooth_crops(crops, np.array([0.4]))
    np.testing.assert_allclose(alone, crops)


def test_how_much_of_the_square_the_picture_fills():
    # Half a pixel of the square lies to the left of the picture and a quarter of its height below it.
    crop = np.array([1 / 80, 0.5 / 16, 0.0])
    seen = inside(crop, 200, 60, 16)
    np.testing.assert_allclose(seen[0], [0.5] + [1.0] * 15)
    np.testing.assert_allclose(seen[:, 8], [1.0] * 12 + [0.0] * 4)
    whole = np.array([1 / 40, 0, 0])
    everything = inside(whole, 40, 40, 7)
    np.testing.assert_allclose(everything, np.ones((7, 7)))


@pytest.mark.parametrize("degrees", [0, 30])
def test_the_share_of_a_head_outside(degrees):
    turn = np.deg2rad(degrees)
    sine = np.sin(turn)
    cosine = np.cos(turn)
    # The rows of a picture count downwards.
    up = np.array([sine, -cosine])
    right = np.array([cosine, sine])
    middle = np.array([200.0, 200.0])
    # From the chin to the crown and from ear to ear are 100 pixels.
    mesh = np.tile(middle, (478, 1))
    mesh[CHIN] = middle - 50 * up
    face = 100 / (1 + CROWN)
    mesh[FOREHEAD] = mesh[CHIN] + face * up
    mesh[0] = middle - 50 * right
    mesh[1] = middle + 50 * right
    assert outside_share(mesh, 400, 400) == 0
    half_beside = outside_share(mesh, 200, 400)
    assert half_beside == pytest.approx(0.5, abs=0.02)
    half_above = outside_share(mesh - [0, 200], 400, 400)
    assert half_above == pytest.approx(0.5, abs=0.02)
    # A circular segment of a quarter of the height.
    segment = outside_share(mesh, 400, 225)
    assert segment == pytest.approx(0.1955, abs=0.02)
    assert outside_share(mesh, 400, 100) == 1
