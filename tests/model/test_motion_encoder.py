"""E_mot: small sizes, and the aligned crop. Layout and parity: test_parity."""

import numpy as np
import pytest
import torch

from model.psi.motion_encoder import MotionEncoder, motion_crop
from model.sizes import MotionSizes


def face(
    size: int,
    turn: float,
    place: tuple[float, float],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture with three blobs where eyes and mouth are, and the 68 landmarks (only their means count)."""
    base = torch.tensor([[-0.25, -0.2], [0.25, -0.2], [0.0, 0.41]]) * scale
    rotation = torch.tensor([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]).float()
    three = base @ rotation.T + torch.tensor(place)
    landmarks = torch.zeros(1, 68, 2)
    for point, part in zip(three, (slice(36, 42), slice(42, 48), slice(60, 68)), strict=True):
        landmarks[:, part] = point
    axis = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    picture = torch.zeros(size, size)
    for brightness, (u, v) in enumerate(three, start=1):
        distance2 = (x - u) ** 2 + (y - v) ** 2
        picture += brightness * torch.exp(-distance2 / (0.15 * scale) ** 2)
    return (picture / 1.5 - 1).expand(1, 3, -1, -1), landmarks


def test_crops_of_one_face_look_the_same_however_it_lies() -> None:
    upright = motion_crop(*face(256, 0.0, (0.5, 0.5), 0.3), 64)
    for turn, place, scale in ((0.2, (0.45, 0.55), 0.3), (-0.2, (0.5, 0.5), 0.33)):
        crop = motion_crop(*face(256, turn, place, scale), 64)
        assert (crop - upright).abs().mean() < 0.005
    assert (upright - upright.flip(3)).abs().mean() > 0.02


def test_crop_is_batched_and_differentiable_and_keeps_proportions_of_wide_images() -> None:
    picture, landmarks = face(128, 0.1, (0.5, 0.5), 0.3)
    wide = torch.cat([picture, -torch.ones_like(picture)], 3)
    squeezed = landmarks * torch.tensor([0.5, 1.0])
    difference = motion_crop(wide, squeezed, 64) - motion_crop(picture, landmarks, 64)
    assert difference.abs().max() < 1e-3
    picture = picture.repeat(2, 1, 1, 1).requires_grad_()
    landmarks = landmarks.repeat(2, 1, 1).requires_grad_()
    motion_crop(picture, landmarks, 32).square().sum().backward()
    assert picture.grad.abs().sum() > 0
    assert landmarks.grad.isfinite().all() and landmarks.grad.abs().sum() > 0


def test_small_sizes() -> None:
    sizes = MotionSizes(input=64, width=16, channels=32, depth=2, feature=24, emotion=10, mouth=8)
    encoder = MotionEncoder(sizes)
    parts = encoder(torch.rand(2, 3, 64, 64))
    assert [part.shape[1] for part in parts] == [6, 6, 10, 24]
    embedding = encoder.embedding(torch.rand(2, 3, 64, 64))
    assert embedding.shape == (2, sizes.dims)
    embedding.sum().backward()
    with pytest.raises(ValueError, match="multiple of 8"):
        MotionEncoder(MotionSizes(input=60))
    with pytest.raises(ValueError, match="depth 4"):
        MotionEncoder(MotionSizes(input=32))
