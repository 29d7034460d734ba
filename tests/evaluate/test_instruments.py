"""The instruments on pictures and parameters whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.head.flame import Flame
from pipeline.core.seeds import rng
from pipeline.evaluate.instruments import ExpressionTruth, FaceReader, FidPerception
from pipeline.geometry.expression import ExpressionOffsets
from pipeline.geometry.head_model import load
from pipeline.synthetic.animation import photo
from pipeline.synthetic.generator import latent
from pipeline.synthetic.person import person
from pipeline.synthetic.raster import render
from pipeline.synthetic.scene import figure
from tests.evaluate import world


def test_fid_perception_of_pieces_is_that_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(12, 3, 64, 64, generator=generator) * 2 - 1
    fid = FidPerception("fid", world.small_judges().trunk, torch.device("cpu"))
    for piece in real.split(5):
        fid.take(piece)

    def distance(images, pieces=12):
        results = fid.results()
        for piece in images.split(pieces):
            results.add(piece)
        return results.distance()

    assert distance(real) == pytest.approx(0.0, abs=1e-6)
    far = distance(real * 0.3)
    assert far > distance(real * 0.9) > 0
    assert distance(real * 0.3, pieces=7) == pytest.approx(far, rel=1e-6)


def test_expression_truth_reads_what_it_was_calibrated_with():
    """A regressor linear in the truth, with its own scale and offset, is calibrated but for shrinkage."""
    flame = Flame(load("standin"))
    instrument = ExpressionTruth(flame)
    generator = torch.Generator().manual_seed(1)
    parameters = torch.zeros(400, 106)
    parameters[:, :10] = torch.randn(400, 10, generator=generator)
    read = parameters * 3.0 + 1.0
    rotation = torch.zeros(400, 3)
    estimates = torch.cat([read, rotation], dim=1)
    instrument.calibrate(estimates[:300], parameters[:300])
    error = instrument(estimates[300:], parameters[300:])
    offsets = instrument.offsets(parameters[300:]).norm(dim=2)
    assert error.mean() < 0.6 * offsets.mean()
    # The truth of other frames is far from what is read.
    other = instrument(estimates[300:], parameters[:100])
    assert other.mean() > 2 * error.mean()


def test_expression_truth_reads_mouth_lids_and_gaze():
    flame = Flame(load("standin"))
    instrument = ExpressionTruth(flame)
    # Radians of jaw and eyes, which a regressor reads as they are.
    generator = torch.Generator().manual_seed(2)
    parameters = torch.zeros(300, 106)
    parameters[:, 100] = 0.3 * torch.rand(300, generator=generator)
    parameters[:, 104] = 0.4 * torch.rand(300, generator=generator) - 0.2
    estimates = torch.cat([parameters, torch.zeros(300, 3)], dim=1)
    instrument.calibrate(estimates, parameters)
    motion = instrument.motion(estimates)
    for name, column in (("mouth_opening", 100), ("gaze", 104)):
        found = np.corrcoef(motion[name], parameters[:, column])[0, 1]
        assert abs(found) > 0.95
    # As in a picture: the mouth opens with the jaw, and eyes that turn to the head's left look to the right.
    assert np.corrcoef(motion["mouth_opening"], parameters[:, 100])[0, 1] > 0
    assert np.corrcoef(motion["gaze"], parameters[:, 104])[0, 1] > 0


def test_expression_truth_is_in_percent_of_the_interocular_distance():
    flame = Flame(load("standin"))
    offsets = ExpressionOffsets(flame)
    neutral = torch.zeros(1, 106)
    assert offsets(neutral).abs().max() < 1e-4
    opened = neutral.clone()
    # Radians of the jaw.
    opened[:, 100] = 0.3
    moved = offsets(opened)[0].norm(dim=1)
    linear = opened @ offsets.linear()
    nearly = linear.view(53, 3).norm(dim=1)
    assert torch.allclose(nearly, moved, atol=0.2 * moved.max())
    # The lower lip moves, by a share of the distance of the eyes; the brows do not.
    assert 5 < moved[40] < 100
    assert moved[:10].max() < 1


def test_the_reader_reads_an_opening_mouth():
    """A drawn face of 64 pixels opens its mouth; in the last picture there is no face."""
    someone = person(latent(0, "reader"))
    body = figure(someone)
    shot = photo(rng(0, "reader"))
    images = []
    for jaw in (0.0, 0.15, 0.3):
        turned = np.array([jaw, 0.0, 0.0])
        moment = replace(shot.moment, jaw=turned)
        picture = render(body, moment, shot.camera, 64)
        images.append(picture.rgb)
    stacked = torch.from_numpy(np.stack(images))
    levels = stacked.permute(0, 3, 1, 2).float()
    faces = levels / 127.5 - 1.0
    blank = torch.zeros(1, 3, 64, 64)
    read = FaceReader()
    found = read(torch.cat([faces, blank]))
    opening = found["mouth_opening"]
    assert opening[0] < opening[1]
    assert opening[1] < opening[2]
    assert np.isnan(opening[3])
    assert set(found) == {"mouth_opening", "eye_opening", "gaze"}
