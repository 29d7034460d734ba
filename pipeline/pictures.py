"""Small pictures on the way: grids of images as JPEG."""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.files import write_bytes


def to_uint8(image_BCHW: Tensor) -> np.ndarray:
    """Images in [-1, 1] as 8-bit (B, H, W, C)."""
    return ((image_BCHW.detach().clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def save_grid(path: Path, rows: list[Tensor]) -> None:
    """Write a JPEG with one row for each batch of images (B, 3, H, W) in [-1, 1]; smaller images are enlarged to the size of the first row's."""
    size = rows[0].shape[-2:]
    strips = [np.concatenate(list(to_uint8(F.interpolate(row, size=size, mode="nearest"))), axis=1) for row in rows]
    write_bytes(path, encode_jpeg(np.concatenate(strips, axis=0)))


def encode_jpeg(image_HWC: np.ndarray, quality: int = 92) -> bytes:
    """JPEG bytes of an 8-bit RGB image."""
    return cv2.imencode(".jpg", np.ascontiguousarray(image_HWC[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
