"""How pictures are written into shards: PNG, WebP, JPEG or AVIF. What reads them knows each by its bytes.

A codec is a text of params.yaml: `png` and `webp` lose nothing, `webp-90`, `jpeg-90` and `avif-90` have a
quality from 0 to 100. WebP knows no grey.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import PurePath

import cv2
import numpy as np

from pipeline.core.errors import UserError

SUFFIXES = {"png": ".png", "webp": ".webp", "jpeg": ".jpg", "avif": ".avif"}
# The lowest level, as compressing is what takes the time.
PNG_LEVEL = 1
# OpenCV's word for a WebP that loses nothing.
LOSSLESS = 101


@dataclass(frozen=True)
class Codec:
    """How a picture is written; `quality` is 0 to 100, or none where nothing is lost."""

    name: str
    quality: int | None = None

    @property
    def suffix(self) -> str:
        return SUFFIXES[self.name]

    def encode(self, image: np.ndarray) -> bytes:
        """The bytes of an image: uint8 (H, W) grey or (H, W, 3) RGB; PNG takes uint16 as well.

        Raises ValueError for another type or shape.
        """
        is_colour = image.ndim == 3 and image.shape[2] == 3
        types = (np.uint8, np.uint16) if self.name == "png" else (np.uint8,)
        if image.dtype not in types or not (is_colour or image.ndim == 2):
            found = f"{image.dtype} of shape {image.shape}"
            wanted = f"a {self.name.upper()} holds {' or '.join(kind.__name__ for kind in types)}"
            raise ValueError(f"{wanted} of shape (H, W) or (H, W, 3), not {found}")
        # OpenCV has colours in the order blue, green, red.
        stored = np.ascontiguousarray(image[:, :, ::-1] if is_colour else image)
        done, data = cv2.imencode(self.suffix, stored, self._options())
        if not done:
            raise UserError(f"OpenCV cannot write {self.name} here; choose png in params.yaml")
        return data.tobytes()

    def _options(self) -> list[int]:
        if self.name == "png":
            return [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL]
        if self.name == "webp":
            return [cv2.IMWRITE_WEBP_QUALITY, LOSSLESS if self.quality is None else max(self.quality, 1)]
        kind = cv2.IMWRITE_JPEG_QUALITY if self.name == "jpeg" else cv2.IMWRITE_AVIF_QUALITY
        return [kind, self.quality or 0]


PNG = Codec("png")


@cache
def codec(text: str) -> Codec:
    """The codec of a text of params.yaml."""
    name, _, quality = text.partition("-")
    return Codec(name, int(quality) if quality else None)


def is_picture(file: str) -> bool:
    """Whether the name of a field is that of a picture."""
    return PurePath(file).suffix in SUFFIXES.values()


def spellings(file: str) -> list[str]:
    """The names that a picture `x.png` may have in a shard, by its codec; of another field its name alone."""
    if not is_picture(file):
        return [file]
    return [str(PurePath(file).with_suffix(suffix)) for suffix in SUFFIXES.values()]


def plain_name(file: str) -> str:
    """What a field is called in the code: pictures end with .png, whatever their codec."""
    return str(PurePath(file).with_suffix(".png")) if is_picture(file) else file


def decode_picture(data: bytes) -> np.ndarray:
    """The image in bytes of any codec: uint8 or uint16, (H, W) or (H, W, 3) RGB.

    Raises UserError when it cannot be decoded.
    """
    # For no bytes at all OpenCV raises an error of its own instead of returning None.
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if image is None:
        raise UserError("the bytes of an image are no PNG, WebP, JPEG or AVIF that can be decoded.")
    if image.ndim == 2:
        return image
    return np.ascontiguousarray(image[:, :, ::-1])
