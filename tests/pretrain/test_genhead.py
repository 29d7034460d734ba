"""GenHead's training data: the truth of a raw portrait, seen in its aligned crop."""

import numpy as np
import pytest
import torch

from pipeline.geometry.camera import look_at, project
from pipeline.pretrain.genhead import gradient_l1
from pipeline.pretrain.portraits import aligned_camera, aligned_depth, aligned_mean

CROP = [1 / 128, -0.4, -0.3]  # of a raw image of 256 pixels, the 128 from (51.2, 38.4) on
ROW = {"crop": CROP, "width": 256, "height": 256}


def test_a_point_seen_in_the_raw_image_is_seen_at_the_same_place_of_the_crop():
    # The crop is shifted differently across and down, so that swapped axes show.
    target = np.array([0.0, 0.0, 0.1])
    raw = look_at(0.3, 0.1, 4.1, target)
    points = np.array([[0.05, -0.1, 0.2], [0.0, 0.1, 0.3]])
    in_raw_pixels = project(points, raw) * 256
    shift = np.array(CROP[1:])
    expected = in_raw_pixels / 128 + shift
    aligned = aligned_camera(raw, ROW)
    found = project(points, aligned)
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_mask_keeps_its_area_and_place():
    raw = np.zeros((256, 256), np.float32)
    # In the crop from about (0, 0.5) to (0.5, 1).
    raw[102:166, 51:115] = 1.0
    found = aligned_mean(raw, CROP, 16)
    assert found.shape == (16, 16)
    # A crop that is off by half a pixel would lose a part of the mask's border row.
    inside = found[8:, :8]
    assert inside.mean() > 0.97
    above, beside = found[:7], found[:, 9:]
    assert above.max() == 0
    assert beside.max() == 0


def test_depth_is_infinite_where_there_is_none():
    raw = np.zeros((256, 256), np.float32)
    raw[:, 128:] = 4.2
    found = aligned_depth(raw, CROP, 8)
    # Exactly the depth that was there: an interpolation would put points between the head and nothing.
    empty, filled = found[:, :4], found[:, 5:]
    assert np.isinf(empty).all()
    assert (filled == np.float32(4.2)).all()


def test_gradient_loss_sees_edges_but_not_brightness():
    image = torch.rand(2, 3, 8, 8)
    brighter = gradient_l1(image, image + 0.3)
    assert brighter.abs().max() < 1e-6
    black = torch.zeros_like(image)
    plain = gradient_l1(image, black)
    assert plain.min() > 0.1
