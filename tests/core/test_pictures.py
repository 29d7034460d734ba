"""Sizes and places of what contact sheets are put together from."""

import cv2
import numpy as np
import torch

from pipeline.core.pictures import CAPTION, below, beside, encode_jpeg, encode_jpeg_within, tile, to_uint8


def grey(
    height: int,
    width: int,
    level: int = 100,
) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def test_the_range_of_images_is_that_of_bytes():
    image = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 5)
    assert to_uint8(image).flatten().tolist() == [0, 0, 128, 255, 255]


def test_tiles_shrink_by_their_mean_and_grow_as_asked():
    board = np.kron([[0, 200], [200, 0]], np.ones((2, 2))).astype(np.uint8)[..., None].repeat(3, axis=2)
    assert (tile(board, 1) == 100).all()
    assert np.array_equal(tile(board[::2, ::2], 4, cv2.INTER_NEAREST), board)
    assert np.array_equal(tile(board, 4), board)


def test_captions_stand_above_their_pictures():
    row = beside([grey(20, 64, 10), grey(20, 64, 90)], ["left", "right"])
    assert row.shape == (CAPTION + 20, 128, 3)
    captions, left, right = row[:CAPTION], row[CAPTION:, :64], row[CAPTION:, 64:]
    assert (left == 10).all()
    assert (right == 90).all()
    # Both halves have ink on white.
    for half in np.split(captions, 2, axis=1):
        assert half.max() == 255
        assert half.min() < 100


def test_rows_of_a_sheet_are_filled_with_white():
    sheet = below([grey(10, 8), grey(10, 12)], gap=2)
    assert sheet.shape == (24, 12, 3)
    narrow, gap = sheet[:10], sheet[10:12]
    assert (narrow[:, :8] == 100).all()
    assert (narrow[:, 8:] == 255).all()
    assert (gap == 255).all()


def test_a_jpeg_gives_up_quality_for_size():
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    best, worst = encode_jpeg(noise), encode_jpeg(noise, 20)
    assert encode_jpeg_within(noise, len(best)) == best
    assert len(worst) <= len(encode_jpeg_within(noise, len(best) // 2)) <= len(best) // 2
    assert encode_jpeg_within(noise, 10) == worst
