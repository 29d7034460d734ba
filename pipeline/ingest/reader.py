"""Finding, probing and decoding the images and videos that users bring.

Whatever is wrong with one file is a `Rejected` with a reason that a person understands; the run goes on without that file.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import cv2  # noqa: F401  loaded before decord, whose zlib would otherwise stand in for that of cv2: PNG then cannot be decoded any more
import decord
import numpy as np
from decord._ffi.base import DECORDError
from PIL import Image, ImageOps

from pipeline.ingest.files import Rejected

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".avi", ".webm"})
SMALLEST_SIDE = 16  # pixels; nothing can be seen in less
MOST_PIXELS = 200_000_000

Image.MAX_IMAGE_PIXELS = None  # the limit above gives a reason instead of a warning
decord.logging.set_level(decord.logging.QUIET)


def find_files(folder: str | Path, suffixes: frozenset[str]) -> tuple[list[str], int]:
    """All files below `folder` with one of `suffixes` as sorted paths relative to it, and the number of other files.

    Links are followed, each folder is visited once, hidden files and folders are passed over. A folder or a broken link with such a suffix
    is listed too, so that reading it gives a reason.
    """
    found, others, visited = [], 0, set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = (
            sorted(name for name in folders if not name.startswith(".")) if real not in visited else []
        )
        if real in visited:
            continue
        visited.add(real)
        relative = Path(here).relative_to(folder)
        wanted = [
            name
            for name in [*files, *folders]
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes
        ]
        found += [(relative / name).as_posix() for name in wanted]
        others += sum(
            not name.startswith(".") and Path(name).suffix.lower() not in suffixes for name in files
        )
    return sorted(found), others


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise Rejected("a folder, not a file")
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise Rejected(f"cannot be read: {error.strerror}") from error
    if empty:
        raise Rejected("empty file")


def read_image(path: str | Path) -> np.ndarray:
    """The image as uint8 RGB (H, W, 3), turned as its EXIF orientation says.

    Grey, palette, CMYK and 16-bit images are converted, transparent pixels become white, of an animation the first picture is taken.
    Raises Rejected.
    """
    path = Path(path)
    _check_file(path)
    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Rejected(f"image too large: {image.width} x {image.height}")
            image.load()
            picture = _to_rgb(ImageOps.exif_transpose(image))
    except Rejected:
        raise
    except (
        Exception
    ) as error:  # Pillow's readers let struct, value, index and system errors through when a file is damaged
        raise Rejected(f"cannot be read: {_plain(error)}") from error
    if min(picture.shape[:2]) < SMALLEST_SIDE:
        raise Rejected(f"image too small: {picture.shape[1]} x {picture.shape[0]}")
    return picture


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float32)
        image = Image.fromarray(
            np.clip(values / (257.0 if values.max() > 255 else 1.0) + 0.5, 0, 255).astype(np.uint8)
        )
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


@dataclass(frozen=True)
class Video:
    """What the container says: frames a second (mean), frames declared (0: it does not say), packets there are, size in pixels, seconds."""

    path: Path
    fps: float
    declared: int
    packets: int
    width: int
    height: int
    seconds: float


def probe_video(path: str | Path) -> Video:
    """Read the container without decoding pictures. Raises Rejected."""
    path = Path(path)
    _check_file(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise Rejected("no video stream")
            stream = container.streams.video[0]
            rate = float(stream.average_rate or stream.base_rate or 0)
            seconds = float(container.duration or 0) / av.time_base
            return Video(
                path,
                rate,
                stream.frames,
                _count_packets(container, stream),
                stream.width,
                stream.height,
                seconds,
            )
    except (av.error.FFmpegError, ValueError, OverflowError) as error:
        raise Rejected(f"cannot be read: {_plain(error)}") from error


def _count_packets(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    count = 0
    try:
        for packet in container.demux(stream):
            count += packet.size > 0
    except av.error.FFmpegError:
        pass  # the file ends early: the count shows it
    return count


def read_frames(path: str | Path, indices: Sequence[int]) -> Iterator[tuple[int, float, np.ndarray]]:
    """Decode the frames of ascending `indices` one at a time: (index, seconds of the presentation time stamp, uint8 RGB (H, W, 3)).

    By decord; from where it fails, by PyAV. Ends early when the file does: compare the count with what was asked for.
    """
    done = 0
    try:
        for frame in _decord_frames(path, indices):
            yield frame
            done += 1
        return
    except (RuntimeError, DECORDError):  # the first while opening, the second while decoding
        pass
    yield from islice(_pyav_frames(path, indices), done, None)


def _decord_frames(path: str | Path, indices: Sequence[int]) -> Iterator[tuple[int, float, np.ndarray]]:
    reader = decord.VideoReader(str(path), num_threads=1)  # the default opens four threads a file
    for index in indices:
        if index >= len(reader):
            return
        picture = reader[index].asnumpy()
        if (
            picture.shape[2] != 3
        ):  # a turned video less than 64 pixels wide: the padding of its lines is taken for a colour
            raise RuntimeError("lines are padded")
        yield index, float(reader.get_frame_timestamp(index)[0]), picture


def _pyav_frames(path: str | Path, indices: Sequence[int]) -> Iterator[tuple[int, float, np.ndarray]]:
    wanted, last = set(indices), max(indices, default=-1)
    try:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_count = 1
            for index, frame in enumerate(islice(container.decode(video=0), last + 1)):
                if index in wanted:
                    picture = np.rot90(
                        frame.to_ndarray(format="rgb24"), frame.rotation // 90
                    )  # decord turns the picture by itself
                    yield index, float(frame.time or 0.0), np.ascontiguousarray(picture)
    except (av.error.FFmpegError, IndexError):
        return


def _plain(error: Exception) -> str:
    """The library's own words, without addresses and paths, so that equal files give equal tables wherever they lie."""
    text = (
        error.strerror
        if isinstance(error, OSError) and error.strerror
        else str(error) or type(error).__name__
    )
    return re.sub(r"\s*(<[^>]*>|'[^']*/[^']*'|\"[^\"]*/[^\"]*\")", "", text.splitlines()[0])[:120]
