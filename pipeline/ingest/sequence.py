"""A folder of numbered pictures as a clip, as VFHQ is handed out; `PictureSequence` offers what `Video`
does."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.ingest.files import NUMBERED, PICTURE, Rejected, is_wanted
from pipeline.ingest.picture import read_picture
from pipeline.ingest.video import THUMBNAIL, Frame, Scan, Video


class PictureSequence:
    """The pictures of one folder as the frames of a clip, in the order of their numbers.

    The time of a frame is its number less the first, over `fps`, so that a missing picture leaves a gap. The
    other attributes are those of `Video`.
    """

    def __init__(self, path: str | Path, fps: float):
        """Raises Rejected when the numbers of two pictures are equal."""
        self.path, self.fps = Path(path), fps
        numbers: dict[int, Path] = {}
        for file in sorted(self.path.iterdir()):
            found = NUMBERED.search(file.name)
            if found is None or file.name.startswith(".") or not _is_picture(file):
                continue
            number = int(found[1])
            if number in numbers:
                raise Rejected(f"two pictures have one number: {numbers[number].name} and {file.name}")
            numbers[number] = file
        ordered = sorted(numbers)
        self._files = [numbers[number] for number in ordered]
        self._seconds = [(number - ordered[0]) / fps for number in ordered]
        self.declared = self.packets = len(ordered)
        self.seconds = len(ordered) / fps
        self.width = self.height = 0

    def frames(self, indices: Sequence[int] | None = None) -> Iterator[Frame]:
        """The pictures of ascending `indices`, or all; one that cannot be read has no index."""
        readable = self._readable
        wanted = range(len(readable)) if indices is None else indices
        for index in wanted:
            place = readable[index]
            yield Frame(index, self._seconds[place], read_picture(self._files[place]))

    def scan(self) -> Scan:
        """All pictures in small; they are read the first time."""
        return self._scanned[0]

    @property
    def _readable(self) -> list[int]:
        return self._scanned[1]

    @cached_property
    def _scanned(self) -> tuple[Scan, list[int]]:
        """The scan, and the places of the files that can be read."""
        thumbnails, readable = [], []
        for place, file in enumerate(self._files):
            try:
                picture = Image.fromarray(read_picture(file))
            except Rejected:
                continue
            small = picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
            thumbnails.append(np.asarray(small))
            readable.append(place)
        seconds = np.array([self._seconds[place] for place in readable], np.float64)
        pictures = np.array(thumbnails, np.uint8).reshape(
            -1,
            THUMBNAIL,
            THUMBNAIL,
            3,
        )
        return Scan(seconds, pictures, len(self._files) - len(readable)), readable


def _is_picture(file: Path) -> bool:
    try:
        return is_wanted(file, PICTURE)
    except Rejected:
        return False


Clip = Video | PictureSequence


def open_clip(path: str | Path, fps: float) -> Clip:
    """A video file, or a folder of numbered pictures at `fps` frames a second. Raises Rejected."""
    return PictureSequence(path, fps) if Path(path).is_dir() else Video(path)
