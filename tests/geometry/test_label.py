"""The vectors of numbers that describe a head: every number of a label comes where the layout says."""

import numpy as np
import pytest
import torch

from pipeline.core.seeds import rng
from pipeline.geometry.camera import look_at, rotation, rotation_between
from pipeline.geometry.label import Estimate, FaceParameters, Label, Motion
from pipeline.store import samples

# Each number is its own place, so that a part says where it was taken from.
NUMBERS = np.arange(Label.SIZE, dtype=np.float32)[None]


def test_a_label_is_packed_as_it_was_split():
    for label in (NUMBERS, torch.from_numpy(NUMBERS)):
        packed = Label.split(label).pack()
        assert type(packed) is type(label) and (packed == label).all()


def test_samples_hold_whole_labels():
    assert samples.LABEL == Label.SIZE and Label.CAMERA.stop == samples.CAMERA


def test_the_two_vectors_of_109_numbers_differ_after_the_first_eye():
    motion = Motion.of(NUMBERS).pack()[0]
    estimate = Estimate.of(NUMBERS).pack()[0]
    assert len(motion) == Motion.SIZE and len(estimate) == Estimate.SIZE
    assert motion.tolist() == [*range(325, 425), *range(428, 437)]
    assert estimate[: FaceParameters.SIZE].tolist() == [*range(325, 425), *range(428, 434)]


def test_an_estimate_has_the_rotation_of_world_to_camera():
    label = np.zeros((1, Label.SIZE), np.float32)
    label[0, Label.CAMERA] = look_at(0.4, 0.0, 4.2, np.zeros(3))
    found = Estimate.of(label).pack()[0, Estimate.ROTATION]
    assert found == pytest.approx([0.0, 0.4, 0.0], abs=1e-6)


def test_the_slices_of_the_face_are_those_of_its_parts():
    numbers = rng(0, "face").normal(size=(2, FaceParameters.SIZE))
    parts = FaceParameters.split(numbers)
    assert [part.shape[1] for part in (parts.expression, parts.jaw, parts.eye)] == [100, 3, 3]
    assert np.array_equal(parts.pack(), numbers)


def test_the_angle_between_cameras_is_in_degrees():
    front, side = (look_at(yaw, 0.0, 4.2, np.zeros(3)) for yaw in (0.0, 0.5))
    assert rotation_between(front, side) == pytest.approx(np.degrees(0.5), abs=0.01)
    assert np.allclose(rotation(front), np.eye(3))
