"""The vectors of numbers that describe a head: every number of a label comes where the layout says."""

import numpy as np
import pytest
import torch

from pipeline.core.seeds import rng
from pipeline.geometry.camera import look_at, rotation
from pipeline.geometry.label import Estimate, FaceParameters, Label, Motion
from pipeline.store import samples

# Each number is its own place, so that a part says where it was taken from.
NUMBERS = np.arange(Label.SIZE, dtype=np.float32)[None]
EXPRESSION_AND_JAW = [*range(325, 425), *range(428, 431)]
LEFT_EYE = [431, 432, 433]
RIGHT_EYE = [434, 435, 436]
ORIGIN = np.zeros(3)


@pytest.mark.parametrize("label", [NUMBERS, torch.from_numpy(NUMBERS)])
def test_a_label_is_packed_as_it_was_split(label):
    parts = Label.split(label)
    packed = parts.pack()
    assert type(packed) is type(label)
    assert (packed == label).all()


def test_samples_hold_whole_labels():
    assert samples.LABEL == Label.SIZE
    assert Label.CAMERA.stop == samples.CAMERA


def test_a_motion_has_both_eyes():
    (numbers,) = Motion.of(NUMBERS).pack()
    assert len(numbers) == Motion.SIZE
    assert numbers.tolist() == EXPRESSION_AND_JAW + LEFT_EYE + RIGHT_EYE


def test_an_estimate_has_the_left_eye():
    (numbers,) = Estimate.of(NUMBERS).pack()
    assert len(numbers) == Estimate.SIZE
    # Its last three numbers are a rotation, which NUMBERS has none of.
    face = numbers[Estimate.FACE]
    assert face.tolist() == EXPRESSION_AND_JAW + LEFT_EYE


def test_an_estimate_has_the_rotation_of_world_to_camera():
    label = np.zeros((1, Label.SIZE), np.float32)
    label[0, Label.CAMERA] = look_at(0.4, 0.0, 4.2, ORIGIN)
    (numbers,) = Estimate.of(label).pack()
    found = numbers[Estimate.ROTATION]
    assert found == pytest.approx([0.0, 0.4, 0.0], abs=1e-6)


def test_the_slices_of_the_face_are_those_of_its_parts():
    numbers = rng(0, "face").normal(size=(2, FaceParameters.SIZE))
    parts = FaceParameters.split(numbers)
    assert parts.expression.shape == (2, 100)
    assert parts.jaw.shape == (2, 3)
    assert parts.eye.shape == (2, 3)
    assert np.array_equal(parts.pack(), numbers)


def test_the_frontal_camera_is_not_turned():
    front = look_at(0.0, 0.0, 4.2, ORIGIN)
    assert np.allclose(rotation(front), np.eye(3))
