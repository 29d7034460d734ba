"""Pictures for people: grids of images as JPEG, videos as MP4."""

import io
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.files import write_bytes

# One thread is not enough for equal bytes: x264's look-ahead (mb-tree, weighted prediction, B frames) was seen to depend on stale memory.
X264 = {
    "crf": "16",
    "preset": "veryfast",
    "threads": "1",
    "x264-params": "mbtree=0:weightp=0:bframes=0:rc-lookahead=0:scenecut=0",
}
CAPTION = 18  # pixels high


def to_uint8(image_BCHW: Tensor) -> np.ndarray:
    """Images in [-1, 1] as 8-bit (B, H, W, C)."""
    return (
        ((image_BCHW.detach().clamp(-1, 1) + 1.0) * 127.5)
        .round()
        .to(torch.uint8)
        .permute(0, 2, 3, 1)
        .cpu()
        .numpy()
    )


def save_grid(path: Path, rows: list[Tensor]) -> None:
    """Write a JPEG with one row for each batch of images (B, 3, H, W) in [-1, 1]; smaller images are enlarged to the size of the first row's."""
    size = rows[0].shape[-2:]
    strips = [
        np.concatenate(list(to_uint8(F.interpolate(row, size=size, mode="nearest"))), axis=1) for row in rows
    ]
    write_bytes(path, encode_jpeg(np.concatenate(strips, axis=0)))


def encode_jpeg(image_HWC: np.ndarray, quality: int = 92) -> bytes:
    """JPEG bytes of an 8-bit RGB image."""
    return cv2.imencode(
        ".jpg", np.ascontiguousarray(image_HWC[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )[1].tobytes()


def encode_mp4(frames: Iterable[np.ndarray], fps: int) -> bytes:
    """H.264 in MP4, equal bytes for equal frames; frames uint8 (H, W, 3), even sides."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options=X264)
        stream.thread_count, stream.pix_fmt = 1, "yuv420p"
        for number, array in enumerate(frames):
            if number == 0:
                stream.height, stream.width = array.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    return sink.getvalue()


def caption(text: str, width: int) -> np.ndarray:
    """A white strip with small text: (CAPTION, width, 3) uint8."""
    strip = np.full((CAPTION, width, 3), 255, np.uint8)
    cv2.putText(strip, text, (3, CAPTION - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (40, 40, 40), 1, cv2.LINE_AA)
    return strip
