"""Pictures for people: 8-bit RGB images, tiles with captions, contact sheets, JPEG."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.files import write_bytes

# Pixels of the height of a caption: even, as the sides of a film must be.
CAPTION = 18
INK = (40, 40, 40)
# Of JPEG, as encoders count them, from the best.
QUALITIES = (92, 85, 75, 60, 40, 20)


def to_uint8(image_BCHW: Tensor) -> np.ndarray:
    """Images in [-1, 1] as 8-bit (B, H, W, C)."""
    levels = (image_BCHW.detach().clamp(-1, 1) + 1.0) * 127.5
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def tile(
    picture_HWC: np.ndarray,
    size: int,
    enlarging: int = cv2.INTER_CUBIC,
) -> np.ndarray:
    """A square picture at `size` pixels.

    Its pixels are averaged when it shrinks; else cv2's method `enlarging` is used.
    """
    method = cv2.INTER_AREA if len(picture_HWC) > size else enlarging
    return cv2.resize(picture_HWC, (size, size), interpolation=method)


def coloured_depth(depth_HW: np.ndarray, opacity_HW: np.ndarray) -> np.ndarray:
    """Depth in colour, uint8 (H, W, 3): near is bright, and what is less than half opaque is black."""
    inside = opacity_HW > 0.5
    if not inside.any():
        return np.zeros((*depth_HW.shape, 3), np.uint8)
    low, high = np.quantile(depth_HW[inside], [0.01, 0.99])
    nearness = np.clip((high - depth_HW) / max(high - low, 1e-6), 0, 1)
    levels = (nearness * 255).astype(np.uint8)
    blue_first = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)
    blue_first[~inside] = 0
    return blue_first[:, :, ::-1]


def caption(text: str, width: int) -> np.ndarray:
    """A white strip with small text: (CAPTION, width, 3) uint8."""
    strip = np.full((CAPTION, width, 3), 255, np.uint8)
    cv2.putText(strip, text, (3, CAPTION - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.36, INK, 1, cv2.LINE_AA)
    return strip


def captioned(picture_HWC: np.ndarray, text: str) -> np.ndarray:
    """The picture with its caption above it: (CAPTION + H, W, 3) uint8."""
    return np.concatenate([caption(text, picture_HWC.shape[1]), picture_HWC])


def beside(pictures: Sequence[np.ndarray], texts: Sequence[str] = ()) -> np.ndarray:
    """Pictures of one height next to each other; with as many `texts`, each below its caption."""
    if texts:
        pictures = [captioned(picture, text) for picture, text in zip(pictures, texts, strict=True)]
    return np.concatenate(pictures, axis=1)


def below(rows: Sequence[np.ndarray], gap: int = 0) -> np.ndarray:
    """Rows of a contact sheet below each other, with `gap` pixels of white after each.

    Those that are narrower than the widest are filled with white.
    """
    width = max(row.shape[1] for row in rows)
    filled = []
    for row in rows:
        margins = ((0, gap), (0, width - row.shape[1]), (0, 0))
        filled.append(np.pad(row, margins, constant_values=255))
    return np.concatenate(filled)


def save_grid(path: Path, rows: list[Tensor]) -> None:
    """Write a JPEG with one row for each batch of images (B, 3, H, W) in [-1, 1].

    Smaller images are enlarged to the size of the first row's.
    """
    size = rows[0].shape[-2:]
    enlarged = [F.interpolate(row, size=size, mode="nearest") for row in rows]
    strips = [beside(list(to_uint8(row))) for row in enlarged]
    write_bytes(path, encode_jpeg(np.concatenate(strips)))


def encode_jpeg(image_HWC: np.ndarray, quality: int = QUALITIES[0]) -> bytes:
    """JPEG bytes of an 8-bit RGB image."""
    blue_first = np.ascontiguousarray(image_HWC[:, :, ::-1])
    return cv2.imencode(".jpg", blue_first, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def encode_jpeg_within(image_HWC: np.ndarray, most: int) -> bytes:
    """JPEG bytes at the best of QUALITIES that takes at most `most` bytes, else at the worst."""
    data = b""
    for quality in QUALITIES:
        data = encode_jpeg(image_HWC, quality)
        if len(data) <= most:
            break
    return data


def decibels(squared_error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, dB, of mean squared errors of images in [-1, 1]."""
    # 10 log10(peak^2 / error), where the peak is 2.
    return 10.0 * torch.log10(4.0 / squared_error)
