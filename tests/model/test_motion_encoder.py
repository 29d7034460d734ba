"""E_mot: small sizes, and the aligned crop. Layout and parity: test_parity."""

import math

import pytest
import torch
from torch import Tensor

from model.psi.motion_encoder import LANDMARKS, MotionEncoder, motion_crop
from model.sizes import MotionSizes


def face(
    size: int,
    turn: float,
    place: tuple[float, float],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """A picture with three blobs where eyes and mouth are, and the 68 landmarks (only their means count)."""
    eyes_and_mouth = [
        [-0.25, -0.2],
        [0.25, -0.2],
        [0.0, 0.41],
    ]
    sin = math.sin(turn)
    cos = math.cos(turn)
    rotation = torch.tensor([[cos, -sin], [sin, cos]])
    upright = torch.tensor(eyes_and_mouth) * scale
    three = upright @ rotation.T + torch.tensor(place)
    landmarks = torch.zeros(1, 68, 2)
    for point, part in zip(three, LANDMARKS, strict=True):
        landmarks[:, part] = point
    pixels = torch.arange(size) + 0.5
    axis = pixels / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    picture = torch.zeros(size, size)
    # Each blob has a brightness of its own, so that no two can be taken for each other.
    width2 = (0.15 * scale) ** 2
    for brightness, (u, v) in enumerate(three, start=1):
        right = x - u
        down = y - v
        distance2 = right**2 + down**2
        blob = torch.exp(-distance2 / width2)
        picture += brightness * blob
    grey = picture / 1.5 - 1
    return grey.expand(1, 3, -1, -1), landmarks


def test_crops_of_one_face_look_the_same_however_it_lies() -> None:
    picture, landmarks = face(256, 0.0, (0.5, 0.5), 0.3)
    upright = motion_crop(picture, landmarks, 64)
    others = [
        (0.2, (0.45, 0.55), 0.3),
        (-0.2, (0.5, 0.5), 0.33),
    ]
    for turn, place, scale in others:
        picture, landmarks = face(256, turn, place, scale)
        crop = motion_crop(picture, landmarks, 64)
        difference = (crop - upright).abs()
        assert difference.mean() < 0.005
    # There is something to see: the mirrored face is another one.
    mirrored = upright.flip(3)
    assert (upright - mirrored).abs().mean() > 0.02


def test_crop_is_batched_and_differentiable_and_keeps_proportions_of_wide_images() -> None:
    picture, landmarks = face(128, 0.1, (0.5, 0.5), 0.3)
    black = torch.full_like(picture, -1.0)
    wide = torch.cat([picture, black], 3)
    squeezed = landmarks * torch.tensor([0.5, 1.0])
    found = motion_crop(wide, squeezed, 64)
    wanted = motion_crop(picture, landmarks, 64)
    assert (found - wanted).abs().max() < 1e-3
    picture = picture.repeat(2, 1, 1, 1).requires_grad_()
    landmarks = landmarks.repeat(2, 1, 1).requires_grad_()
    crops = motion_crop(picture, landmarks, 32)
    crops.square().sum().backward()
    assert picture.grad.any()
    assert landmarks.grad.isfinite().all()
    assert landmarks.grad.any()


def test_small_sizes() -> None:
    sizes = MotionSizes(
        input=64,
        width=16,
        channels=32,
        depth=2,
        feature=24,
        emotion=10,
        mouth=8,
    )
    encoder = MotionEncoder(sizes)
    crops = torch.rand(2, 3, 64, 64)
    # Head pose, eyes, emotion and the mouth's feature.
    widths = [part.shape[1] for part in encoder(crops)]
    assert widths == [6, 6, 10, 24]
    embedding = encoder.embedding(crops)
    assert embedding.shape == (2, sizes.dims)
    embedding.sum().backward()
    with pytest.raises(ValueError, match="multiple of 8"):
        MotionEncoder(MotionSizes(input=60))
    with pytest.raises(ValueError, match="depth 4"):
        MotionEncoder(MotionSizes(input=32))
