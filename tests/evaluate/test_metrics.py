"""The metrics against cases worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.head.flame import Flame
from model.judges.identity import IdentityNet
from model.judges.regressor import Regressor
from model.judges.trunk import Trunk
from model.sizes import IdentitySizes
from pipeline.core.seeds import rng
from pipeline.evaluate import metrics
from pipeline.geometry.expression import ExpressionOffsets
from pipeline.geometry.head_model import load
from pipeline.networks.judges import Judges
from pipeline.synthetic.animation import photo
from pipeline.synthetic.generator import latent
from pipeline.synthetic.person import person
from pipeline.synthetic.raster import render
from pipeline.synthetic.scene import figure


@pytest.fixture(scope="module")
def perception() -> Judges:
    return Judges(IdentityNet(IdentitySizes((1, 1), 4, 8)), Trunk(), Regressor(8))


def test_foreground_psnr_counts_the_mask_alone():
    wanted = torch.zeros(2, 3, 4, 4)
    result = wanted.clone()
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, :2] = 1.0
    result[:, :, 2:] = 1.0  # outside: must not count
    result[0, :, :2] = 0.2  # error 0.04 of peak 4: 20 dB
    assert torch.allclose(
        metrics.foreground_psnr(result, wanted, mask), torch.tensor([20.0, 60.0]), atol=1e-4
    )


def test_foreground_psnr_without_foreground_takes_the_whole_image():
    values = metrics.foreground_psnr(
        torch.full((1, 3, 4, 4), 0.2), torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    )
    assert torch.allclose(values, torch.tensor([20.0]), atol=1e-4)


def test_opacity_iou():
    opacity, mask = torch.zeros(3, 1, 2, 2), torch.zeros(3, 1, 2, 2)
    opacity[0, 0, 0], mask[0, 0, :, 0] = 0.9, 1.0  # two pixels each, one in common
    mask[1] = 1.0
    assert torch.allclose(metrics.opacity_iou(opacity, mask), torch.tensor([1 / 3, 0.0, 1.0]))


def test_depth_error_where_both_have_foreground():
    wanted = torch.full((2, 1, 2, 2), torch.inf)
    wanted[0, 0, 0] = 4.0
    depth, opacity = torch.full((2, 1, 2, 2), 4.1), torch.zeros(2, 1, 2, 2)
    opacity[0, 0, :, 0] = 1.0
    error = metrics.depth_error(depth, opacity, wanted)
    assert error[0] == pytest.approx(0.1, abs=1e-5)
    assert error[1].isnan()


def test_aed_and_apd():
    a, b = torch.zeros(1, 109), torch.zeros(1, 109)
    b[:, 0], b[:, 100] = 1.03, 1.03  # one expression and one jaw number of 103
    b[:, 103] = 9.0  # eyes are in neither
    b[:, 106] = 0.3  # 0.09 / 3 rad^2
    assert metrics.aed(a, b)[0] == pytest.approx(0.02)
    assert metrics.apd(a, b)[0] == pytest.approx(30.0)


def test_cosine_and_consistency():
    features = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    assert metrics.cosine(features[:1], features[1:2])[0] == pytest.approx(1.0)
    assert metrics.consistency(features) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="two drivers"):
        metrics.consistency(features[:1])


def test_landmark_error_is_relative():
    found = np.zeros((1, 2, 2))
    assert np.allclose(metrics.landmark_error(found, found + np.array([3.0, 4.0]), np.array([50.0])), 0.1)


def test_head_region_is_the_foreground_above_the_chin():
    mask = torch.zeros(2, 1, 20, 20)
    mask[0, 0, 2:, 5:15] = 1.0  # down to the shoulders
    landmarks = torch.full((2, 70, 2), 0.5)
    assert metrics.head_region(mask, landmarks) == [
        (slice(2, 11), slice(5, 15)),
        (slice(0, 20), slice(0, 20)),
    ]


def test_head_lpips_looks_at_the_region_alone(perception):
    a = torch.rand(1, 3, 64, 64) * 2 - 1
    b = a.clone()
    b[..., 40:] = 0.0
    assert metrics.head_lpips(perception, a, b, [(slice(0, 64), slice(0, 40))])[0] == pytest.approx(
        0.0, abs=1e-6
    )
    assert metrics.head_lpips(perception, a, b, [(slice(0, 64), slice(0, 64))])[0] > 0.01


def test_fid_perception(perception):
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(12, 3, 64, 64, generator=generator) * 2 - 1
    fid = metrics.FidPerception(perception)
    assert fid(real, real) == pytest.approx(0.0, abs=1e-6)
    far = fid(real * 0.3, real)
    assert far > fid(real * 0.9, real) > 0
    assert fid(real * 0.3, real) == far


def test_expression_truth_reads_what_it_was_calibrated_with():
    """A regressor that is linear in the truth, with its own scale and offset, is calibrated to nothing but ridge shrinkage."""
    instrument = metrics.ExpressionTruth(Flame(load("standin")))
    generator = torch.Generator().manual_seed(1)
    parameters = torch.zeros(400, 106)
    parameters[:, :10] = torch.randn(400, 10, generator=generator)
    estimates = torch.cat([parameters * 3.0 + 1.0, torch.zeros(400, 3)], dim=1)
    offsets = instrument.offsets(parameters).norm(dim=2).mean(1)
    instrument.calibrate(estimates[:300], parameters[:300])
    error = instrument(estimates[300:], parameters[300:])
    assert error.mean() < 0.6 * offsets[300:].mean()
    assert instrument(estimates[300:], parameters[:100]).mean() > 2 * error.mean()


def test_expression_truth_is_in_percent_of_the_interocular_distance():
    offsets = ExpressionOffsets(Flame(load("standin")))
    neutral = torch.zeros(1, 106)
    assert offsets(neutral).abs().max() < 1e-4
    opened = neutral.clone()
    opened[:, 100] = 0.3  # radians of the jaw
    moved = offsets(opened)[0].norm(dim=1)
    assert torch.allclose((opened @ offsets.linear()).view(53, 3).norm(dim=1), moved, atol=0.2 * moved.max())
    assert 5 < moved[40] < 100  # the lower lip moves, by a share of the distance of the eyes
    assert moved[:10].max() < 1  # the brows do not


def test_response_knows_size_and_place():
    true_change = torch.zeros(1, 3, 4, 4)
    true_change[..., :2, :] = 0.4
    assert metrics.response(true_change / 2, true_change) == pytest.approx(
        {"rms": 0.2 / 2**0.5, "true_rms": 0.4 / 2**0.5, "share": 0.5, "agreement": 1.0}
    )
    elsewhere = true_change.flip(2)
    assert metrics.response(elsewhere, true_change)["share"] == pytest.approx(1.0)
    assert metrics.response(elsewhere, true_change)["agreement"] == 0.0
    assert metrics.response(torch.zeros_like(true_change), true_change)["share"] == 0.0


def test_a_correlation_within_clips_does_not_see_who_it_is():
    clips = ["a"] * 3 + ["b"] * 3
    driver = np.array([0.0, 1.0, 2.0, 5.0, 6.0, 7.0])
    assert metrics.within_clips(driver, driver + np.array([9.0] * 3 + [-9.0] * 3), clips) == pytest.approx(
        1.0
    )
    assert metrics.within_clips(np.array([1.0] * 3 + [6.0] * 3), driver, clips) != metrics.within_clips(
        driver, driver, clips
    )
    assert np.isnan(
        metrics.within_clips(np.array([1.0] * 3 + [6.0] * 3), driver, clips)
    )  # nothing moves within a clip
    lost = np.array([np.nan, 1.0, 2.0, 5.0, np.nan, 7.0])
    assert metrics.within_clips(lost, driver, clips) == pytest.approx(1.0)


def test_a_thumbnail_has_its_own_lpips(perception):
    torch.manual_seed(0)
    true = torch.rand(2, 3, 32, 32) * 2 - 1
    thumbnails = metrics.Thumbnails(perception, true)
    assert thumbnails.sides == [4, 6, 8, 12, 16, 24, 32]
    assert thumbnails(0.0) == pytest.approx(32.0)
    middle = thumbnails.distances[thumbnails.sides.index(16)]
    assert thumbnails(middle) == pytest.approx(16.0)
    assert thumbnails(10.0) == pytest.approx(4.0)


def test_the_reader_reads_an_opening_mouth():
    """The mesh's measures on a drawn face of 64 pixels that opens its mouth."""
    body, shot = figure(person(latent(0, "reader"))), photo(rng(0, "reader"))
    images = []
    for jaw in (0.0, 0.15, 0.3):
        moment = replace(shot.moment, jaw=np.array([jaw, 0.0, 0.0]))
        images.append(render(body, moment, shot.camera, 64).rgb)
    pictures = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    blank = torch.zeros(1, 3, 64, 64)
    found = metrics.FaceReader()(torch.cat([pictures, blank]))
    opening = found["mouth_opening"]
    assert opening[0] < opening[1] < opening[2] and np.isnan(opening[3])
    assert set(found) == {"mouth_opening", "eye_opening", "gaze"}
