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
    raw = look_at(0.3, 0.1, 4.1, np.array([0.0, 0.0, 0.1]))
    points = np.array([[0.05, -0.1, 0.2], [0.0, 0.1, 0.3]])
    in_raw_pixels = project(points, raw) * 256
    expected = in_raw_pixels / 128 + np.array(CROP[1:])
    found = project(points, aligned_camera(raw, ROW))
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_mask_keeps_its_area_and_place():
    raw = np.zeros((256, 256), np.float32)
    # In the crop from about (0, 0.5) to (0.5, 1).
    raw[102:166, 51:115] = 1.0
    found = aligned_mean(raw, CROP, 16)
    assert found.shape == (16, 16)
    assert found[8:, :8].mean() > 0.97
    assert found[:7].max() == 0
    assert found[:, 9:].max() == 0


def test_depth_is_infinite_where_there_is_none():
    raw = np.zeros((256, 256), np.float32)
    raw[:, 128:] = 4.2
    found = aligned_depth(raw, CROP, 8)
    assert np.isinf(found[:, :4]).all()
    assert (found[:, 5:] == np.float32(4.2)).all()


def test_gradient_loss_sees_edges_but_not_brightness():
    image = torch.rand(2, 3, 8, 8)
    brighter = gradient_l1(image, image + 0.3)
    assert brighter.abs().max() < 1e-6
    plain = gradient_l1(image, torch.zeros_like(image))
    assert plain.min() > 0.1
