"""The metrics against cases worked out by hand."""

import numpy as np
import pytest
import torch

from pipeline.evaluate import metrics
from pipeline.networks.judges import Judges
from tests.evaluate import world


@pytest.fixture(scope="module")
def judges() -> Judges:
    return world.small_judges()


def test_foreground_psnr_counts_the_mask_alone():
    wanted = torch.zeros(2, 3, 4, 4)
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, :2] = 1.0
    result = wanted.clone()
    result[:, :, 2:] = 1.0
    result[0, :, :2] = 0.2
    # An error of 0.04 of the squared peak 4 is 20 dB; what differs outside of the mask does not
    # count.
    found = metrics.foreground_psnr(result, wanted, mask)
    assert found.tolist() == pytest.approx([20.0, 60.0], abs=1e-4)


def test_foreground_psnr_without_foreground_takes_the_whole_image():
    result = torch.full((1, 3, 4, 4), 0.2)
    wanted = torch.zeros_like(result)
    mask = torch.zeros(1, 1, 4, 4)
    found = metrics.foreground_psnr(result, wanted, mask)
    assert found.tolist() == pytest.approx([20.0], abs=1e-4)


def test_opacity_iou():
    opacity = torch.zeros(3, 1, 2, 2)
    mask = torch.zeros(3, 1, 2, 2)
    # The first have two pixels each and one in common, the second nothing in common, the third
    # nothing at all.
    opacity[0, 0, 0] = 0.9
    mask[0, 0, :, 0] = 1.0
    mask[1] = 1.0
    found = metrics.opacity_iou(opacity, mask)
    expected = [1 / 3, 0.0, 1.0]
    assert found.tolist() == pytest.approx(expected)


def test_depth_error_where_both_have_foreground():
    wanted = torch.full((2, 1, 2, 2), torch.inf)
    wanted[0, 0, 0] = 4.0
    depth = torch.full((2, 1, 2, 2), 4.1)
    opacity = torch.zeros(2, 1, 2, 2)
    # One pixel of the first sample is foreground in both, none of the second.
    opacity[0, 0, :, 0] = 1.0
    error = metrics.depth_error(depth, opacity, wanted)
    assert error[0] == pytest.approx(0.1, abs=1e-5)
    assert error[1].isnan()


def test_aed_and_apd():
    a = torch.zeros(1, 109)
    b = torch.zeros(1, 109)
    # One number of the expression and one of the jaw, of 103; those of the eyes are in neither
    # distance.
    b[:, 0] = 1.03
    b[:, 100] = 1.03
    b[:, 103] = 9.0
    # 0.09 / 3 rad^2 of the head's rotation.
    b[:, 106] = 0.3
    expression = metrics.aed(a, b)
    assert expression[0] == pytest.approx(0.02)
    pose = metrics.apd(a, b)
    assert pose[0] == pytest.approx(30.0)


def test_cosine_and_consistency():
    features = np.array(
        [
            [1.0, 0.0],
            [2.0, 0.0],
            [0.0, 3.0],
        ]
    )
    first = features[:1]
    second = features[1:2]
    same = metrics.cosine(first, second)
    assert same[0] == pytest.approx(1.0)
    # One pair of three points the same way.
    found = metrics.consistency(features)
    assert found == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="two drivers"):
        metrics.consistency(first)


def test_landmark_error_is_relative():
    found = np.zeros((1, 2, 2))
    wanted = found + np.array([3.0, 4.0])
    # A distance of 5 where the eyes are 50 apart.
    unit = np.array([50.0])
    error = metrics.landmark_error(found, wanted, unit)
    assert np.allclose(error, 0.1)


def test_head_region_is_the_foreground_above_the_chin():
    mask = torch.zeros(2, 1, 20, 20)
    # Down to the shoulders; the second image has no foreground.
    mask[0, 0, 2:, 5:15] = 1.0
    landmarks = torch.full((2, 70, 2), 0.5)
    first, second = metrics.head_region(mask, landmarks)
    assert first == (slice(2, 11), slice(5, 15))
    assert second == (slice(0, 20), slice(0, 20))


def test_head_lpips_looks_at_the_region_alone(judges):
    a = 2 * torch.rand(1, 3, 64, 64) - 1
    b = a.clone()
    b[..., 40:] = 0.0
    whole = slice(0, 64)
    left = slice(0, 40)
    of_left = metrics.head_lpips(judges, a, b, [(whole, left)])
    assert of_left[0] == pytest.approx(0.0, abs=1e-6)
    of_whole = metrics.head_lpips(judges, a, b, [(whole, whole)])
    assert of_whole[0] > 0.01


def test_change_is_added_up_piece_by_piece():
    change = torch.ones(2, 3, 4, 4)
    where = torch.zeros(2, 1, 4, 4)
    where[..., :1] = 1.0

    def added(change):
        found = metrics.Change()
        for piece, place in zip(change, where, strict=True):
            found.add(piece[None], place[None])
        return found

    assert added(change).rms == pytest.approx(1.0)
    assert added(change).concentration == pytest.approx(1.0)
    change[..., 1:] = 0.0
    # A quarter of the pixels changes.
    assert added(change).rms == pytest.approx(0.5)
    assert added(change).concentration == pytest.approx(4.0)
    assert np.isnan(added(change * 0).concentration)
    assert metrics.Change().rms == 0


def test_response_knows_size_and_place():
    true_change = torch.zeros(1, 3, 4, 4)
    true_change[..., :2, :] = 0.4
    half = metrics.response(true_change / 2, true_change)
    # Half of the picture changes by 0.4.
    wanted = {
        "rms": 0.2 / 2**0.5,
        "true_rms": 0.4 / 2**0.5,
        "share": 0.5,
        "agreement": 1.0,
    }
    assert half == pytest.approx(wanted)
    elsewhere = metrics.response(true_change.flip(2), true_change)
    assert elsewhere["share"] == pytest.approx(1.0)
    assert elsewhere["agreement"] == 0.0
    nothing = metrics.response(torch.zeros_like(true_change), true_change)
    assert nothing["share"] == 0.0


def test_a_correlation_within_clips_does_not_see_who_it_is():
    clips = ["a"] * 3 + ["b"] * 3
    driver = np.array([0.0, 1.0, 2.0, 5.0, 6.0, 7.0])
    people = np.repeat([9.0, -9.0], 3)
    follower = driver + people
    found = metrics.within_clips(driver, follower, clips)
    assert found == pytest.approx(1.0)
    # Nothing moves within a clip.
    still = metrics.within_clips(people, driver, clips)
    assert np.isnan(still)
    lost = np.array([np.nan, 1.0, 2.0, 5.0, np.nan, 7.0])
    found = metrics.within_clips(lost, driver, clips)
    assert found == pytest.approx(1.0)


def test_a_thumbnail_has_its_own_lpips(judges):
    torch.manual_seed(0)
    true = torch.rand(2, 3, 32, 32) * 2 - 1
    thumbnails = metrics.Thumbnails(judges)
    for piece in true.split(1):
        thumbnails.shrink(piece)
    assert list(thumbnails.columns) == ["4", "6", "8", "12", "16", "24", "32"]
    assert thumbnails(0.0) == pytest.approx(32.0)
    middle = float(thumbnails.columns["16"].mean())
    assert thumbnails(middle) == pytest.approx(16.0)
    assert thumbnails(10.0) == pytest.approx(4.0)
