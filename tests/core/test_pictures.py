"""Sizes and places of what contact sheets are put together from."""

import cv2
import numpy as np
import pytest
import torch

from pipeline.core.pictures import (
    CAPTION,
    below,
    beside,
    decibels,
    encode_jpeg,
    encode_jpeg_within,
    tile,
    to_uint8,
)


def grey(
    height: int,
    width: int,
    level: int = 100,
) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def test_the_range_of_images_is_that_of_bytes():
    levels = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    found = to_uint8(levels.view(1, 1, 1, 5))
    assert found.flatten().tolist() == [0, 0, 128, 255, 255]


def test_tiles_shrink_by_their_mean_and_grow_as_asked():
    # A chessboard that is shrunk by picking pixels is black or white, never the grey that it is from afar.
    squares = np.kron([[0, 200], [200, 0]], np.ones((2, 2)))
    board = np.stack([squares] * 3, axis=2).astype(np.uint8)
    mean = tile(board, 1)
    assert (mean == 100).all()
    small = board[::2, ::2]
    assert np.array_equal(tile(small, 4, cv2.INTER_NEAREST), board)
    assert np.array_equal(tile(board, 4), board)


def test_captions_stand_above_their_pictures():
    pictures = [grey(20, 64, 10), grey(20, 64, 90)]
    row = beside(pictures, ["left", "right"])
    assert row.shape == (CAPTION + 20, 128, 3)
    assert (row[CAPTION:, :64] == 10).all()
    assert (row[CAPTION:, 64:] == 90).all()
    captions = row[:CAPTION]
    # Dark letters on white, above both of them.
    for half in (captions[:, :64], captions[:, 64:]):
        assert half.max() == 255
        assert half.min() < 100


def test_rows_of_a_sheet_are_filled_with_white():
    sheet = below([grey(10, 8), grey(10, 12)], gap=2)
    assert sheet.shape == (24, 12, 3)
    assert (sheet[:10, :8] == 100).all()
    assert (sheet[:10, 8:] == 255).all()
    assert (sheet[10:12] == 255).all()


def test_a_jpeg_gives_up_quality_for_size():
    # Noise is what JPEG compresses worst.
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    best = encode_jpeg(noise)
    worst = encode_jpeg(noise, 20)
    assert encode_jpeg_within(noise, len(best)) == best
    half = len(best) // 2
    between = encode_jpeg_within(noise, half)
    assert len(worst) <= len(between) <= half
    # Nothing fits into 10 bytes.
    assert encode_jpeg_within(noise, 10) == worst


def test_decibels():
    # An error of 0.2 of a range of 2 is a tenth: 20 dB.
    found = decibels(torch.tensor([0.04, 4.0]))
    assert found.tolist() == pytest.approx([20.0, 0.0], abs=1e-4)
