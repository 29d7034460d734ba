"""Videos: frames in the order in which a player shows them, each once, with its time and as the player shows
it.

    video = Video(path)                          # reads the container alone; raises Rejected
    for frame in video.frames():                 # all of them, decoded one at a time
        frame.index, frame.seconds, frame.picture
    for frame in video.frames([0, 10, 20]):      # these, by ascending index
        ...
    scan = video.scan()                          # decodes all frames once, small: times and thumbnails

Index 0 is the first frame that is shown, at 0 seconds. What a player cannot or shall not show has no index:
packets that an edit list hides, frames before the first key frame, and damaged frames up to the next key
frame, which `scan().damaged` counts. `frames` yields the same pictures at the same indices whenever it is
called.

PyAV, decoding in order, is the truth. decord jumps to single frames; it is asked for a few out of many alone,
and only after `scan` has shown that its times are those of the packets and that every key frame is a place to
start from, and every picture of it is compared with its thumbnail.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import av

# cv2 is loaded before decord, whose zlib would otherwise stand in for that of cv2: PNG then cannot be
# decoded.
import cv2  # noqa: F401
import decord
import numpy as np
from av.stream import Disposition
from av.video.frame import PictureType
from decord._ffi.base import DECORDError
from PIL import Image

from pipeline.ingest.files import Rejected, check_file, plain_words
from pipeline.ingest.shown import Timed, is_plain, progressive, to_picture

SMALLEST_SIDE = 16
MOST_PIXELS = 100_000_000
THUMBNAIL = 24
# Frames a second of a stream that does not say its own.
USUAL_RATE = 25.0
# Containers in which a table says where each frame lies.
INDEXED = ("mp4", "matroska")
# decord saves time where less than one frame in so many is asked for.
SPARSE = 8
# Levels by which the thumbnail of a frame of decord may be off in the mean; another scaler makes 1 to 3.
SAME = 4.0

decord.logging.set_level(decord.logging.QUIET)
logging.getLogger("libav").setLevel(logging.CRITICAL)


class Frame(NamedTuple):
    """A frame as it is shown: its place among those that are, seconds since the first, uint8 sRGB (H, W,
    3)."""

    index: int
    seconds: float
    picture: np.ndarray


@dataclass(frozen=True)
class Scan:
    """All frames of a clip in small.

    `seconds_N`: float64, ascending from 0. `thumbnails_NHWC`: uint8 (N, THUMBNAIL, THUMBNAIL, 3), as coded:
    not turned, not in sRGB. `damaged`: frames that were not shown as they, or one that they need, could not
    be decoded.
    """

    seconds_N: np.ndarray
    thumbnails_NHWC: np.ndarray
    damaged: int

    def __len__(self) -> int:
        return len(self.seconds_N)


class _Packet(NamedTuple):
    pts: int | None
    key: bool
    hidden: bool


class Video:
    """A video file.

    `fps`: mean frames a second, 0 where it is not said. `seconds`: of the container, 0 likewise. `declared`:
    frames that the container says it has, 0 likewise. `packets`: that hold something. `width`, `height`: as
    coded, pixels.
    """

    def __init__(self, path: str | Path):
        """Read the container without decoding a picture. Raises Rejected, with a reason for people."""
        self.path = Path(path)
        check_file(self.path)
        try:
            with self._open() as (container, stream):
                self.fps = float(stream.average_rate or stream.base_rate or 0)
                self.seconds = float(container.duration or 0) / av.time_base
                self.declared = stream.frames
                self.width, self.height = stream.width, stream.height
                self._aspect = stream.sample_aspect_ratio
                self._indexed = any(name in container.format.name for name in INDEXED)
                missing = _beyond_the_end(stream, self.path)
                self._packets = _packets(container, stream)
        except (av.error.FFmpegError, ValueError, OverflowError) as error:
            raise Rejected(f"cannot be read: {plain_words(error)}") from error
        self.packets = len(self._packets)
        if missing:
            raise Rejected(f"truncated: {missing} of {self.declared} frames are missing")
        if self.width * self.height > MOST_PIXELS:
            raise Rejected(f"pictures too large: {self.width} x {self.height}")
        if 0 < min(self.width, self.height) < SMALLEST_SIDE:
            raise Rejected(f"pictures too small: {self.width} x {self.height}")

    def frames(self, indices: Sequence[int] | None = None) -> Iterator[Frame]:
        """Decode the frames of ascending `indices`, or all, one at a time; the frames of the file end the
        iteration.

        `seconds` has single precision, as that is what decord has.
        """
        if indices is None:
            yield from self._in_order(None)
            return
        done = 0
        if self._may_jump and len(indices) * SPARSE < len(self.scan()):
            for frame in self._jumping(indices):
                yield frame
                done += 1
        if done < len(indices):
            yield from self._in_order(indices[done:])

    def scan(self) -> Scan:
        """All frames in small; they are decoded the first time. At 1280 x 720 it takes 2 ms a frame."""
        return self._scanned[0]

    @cached_property
    def _scanned(self) -> tuple[Scan, bool]:
        """The scan, and whether every key frame begins with a picture that needs no other and all looks
        plain."""
        seconds, thumbnails, plain = [], [], True
        damage = _Damage()
        keys = {packet.pts for packet in self._packets if packet.key}
        for time, frame in self._decode(damage):
            small = frame.reformat(
                THUMBNAIL,
                THUMBNAIL,
                "rgb24",
                interpolation="AREA",
                threads=1,
            )
            seconds.append(time)
            thumbnails.append(small.to_ndarray())
            starts = frame.pts not in keys or frame.pict_type == PictureType.I
            plain = plain and starts and is_plain(frame, self._aspect)
        shape = (-1, THUMBNAIL, THUMBNAIL, 3)
        pictures = np.array(thumbnails, np.uint8).reshape(shape)
        return Scan(np.array(seconds, np.float64), pictures, damage.frames), plain

    @cached_property
    def _may_jump(self) -> bool:
        """Whether decord, which jumps to key frames, can be trusted with this file (only known after a
        scan)."""
        if "_scanned" not in self.__dict__:
            return False
        scan, plain = self._scanned
        if not plain or not self._indexed or scan.damaged or len(scan) != self.packets:
            return False
        if not _starts_are_clean(self._packets):
            return False
        try:
            reader = decord.VideoReader(str(self.path), num_threads=1)
            found = reader.get_frame_timestamp(range(len(reader)))[:, 0]
        except (RuntimeError, DECORDError):
            return False
        # Single precision leaves this of the times of long films.
        differences = np.abs(found - scan.seconds_N) if len(found) == len(scan) else np.inf
        return bool(np.all(differences <= 1e-4 + 1e-6 * scan.seconds_N))

    def _jumping(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The frames of decord; ends early where it fails."""
        seconds = self.scan().seconds_N
        try:
            # Without the argument, decord opens four threads a file.
            reader = decord.VideoReader(str(self.path), num_threads=1)
            for index in indices:
                picture = reader[index].asnumpy()
                # The padding of the lines of a narrow picture is taken for a fourth colour.
                if picture.shape != (self.height, self.width, 3):
                    return
                if not _is_like(picture, self.scan().thumbnails_NHWC[index]):
                    return
                yield Frame(index, float(seconds[index]), picture)
        except (RuntimeError, DECORDError, IndexError):
            return

    def _in_order(self, indices: Sequence[int] | None) -> Iterator[Frame]:
        """The frames of PyAV, decoded from the first."""
        wanted = None if indices is None else set(indices)
        end = None if indices is None else max(indices, default=-1) + 1
        shown = progressive(self._decode(_Damage()))
        for index, (seconds, frame) in enumerate(islice(shown, end)):
            if wanted is None or index in wanted:
                yield Frame(index, seconds, to_picture(frame, self._aspect))

    def _decode(self, damage: "_Damage") -> Iterator[Timed]:
        """Frames that are shown, in order, with their times; what is not shown for damage is counted."""
        with self._open() as (container, stream):
            clock = _Clock(self.fps or USUAL_RATE, float(stream.time_base))
            stream.thread_count = 1
            for frame in _decoded(container, stream, damage):
                if damage.hides(frame):
                    continue
                if frame.width * frame.height <= MOST_PIXELS:
                    yield Timed(clock.seconds(frame.pts), frame)

    @contextmanager
    def _open(self) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
        """The container and the stream that a player shows, which is not the picture on the cover."""
        with av.open(str(self.path), metadata_errors="ignore") as container:
            streams = container.streams.video
            films = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
            if not films:
                raise Rejected("no video stream")
            # The first of those that are alike: beside the film may lie a preview, or other sizes of it.
            film = max(films, key=_prominence)
            if film.codec_context is None:
                raise Rejected("cannot be read: a coding that is not known here")
            yield container, film


def _prominence(stream: av.VideoStream) -> tuple[bool, int]:
    """By what a player chooses among several streams: which is marked, then which has the most pixels."""
    if stream.codec_context is None:
        return False, 0
    return bool(stream.disposition & Disposition.default), stream.width * stream.height


class _Clock:
    """Seconds since the first frame. A time that is missing or does not rise is one frame after the last."""

    def __init__(self, fps: float, unit: float):
        """`unit`: seconds of a time stamp of 1."""
        self._step, self._unit = 1.0 / fps, unit
        self._first: int | None = None
        self._last = -np.inf

    def seconds(self, stamp: int | None) -> float:
        """The time of the next frame, whose time stamp, if it has one, is `stamp`."""
        if self._last < 0:
            self._first = stamp
            self._last = 0.0
            return 0.0
        now = self._last + self._step
        if stamp is not None and self._first is not None:
            told = (stamp - self._first) * self._unit
            now = told if told > self._last else now
        self._last = float(np.float32(now))
        return self._last


class _Damage:
    """Counts the frames that are not shown: from a damaged one to the next key frame, as each needs those
    before."""

    def __init__(self):
        self.frames = 0
        self._waiting = False

    def packet_failed(self) -> None:
        self.frames += 1
        self._waiting = True

    def hides(self, frame: av.VideoFrame) -> bool:
        if frame.is_corrupt:
            self._waiting = True
        elif frame.key_frame:
            self._waiting = False
        self.frames += self._waiting
        return self._waiting


def _decoded(
    container: av.container.InputContainer, stream: av.VideoStream, damage: _Damage
) -> Iterator[av.VideoFrame]:
    """What the decoder makes of the packets from the first key frame on, without frames that are shown before
    it."""
    start = None
    for packet in _demuxed(container, stream):
        if start is None and not packet.is_keyframe:
            continue
        start = start or (packet.pts,)
        for frame in _decode_packet(stream, packet, damage):
            early = None not in (frame.pts, start[0]) and frame.pts < start[0]
            if not early:
                yield frame
    if start is not None:
        yield from _decode_packet(stream, None, damage)


def _decode_packet(
    stream: av.VideoStream,
    packet: av.Packet | None,
    damage: _Damage,
) -> list[av.VideoFrame]:
    """The frames that a packet completes; without a packet, those that the decoder still holds."""
    try:
        return stream.codec_context.decode(packet)
    except av.error.FFmpegError:
        damage.packet_failed()
        return []


def _demuxed(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets that hold something; an error of the container is the end of the file.

    An empty one is a frame that an AVI dropped. It must not reach the decoder, which would take it for the
    end.
    """
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            return
        if packet is None:
            return
        if packet.size > 0:
            yield packet


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> list[_Packet]:
    demuxed = _demuxed(container, stream)
    return [_Packet(packet.pts, packet.is_keyframe, packet.is_discard) for packet in demuxed]


def _starts_are_clean(packets: Sequence[_Packet]) -> bool:
    """Whether nothing is hidden, and all that comes before a key frame in the file is shown before it,
    too."""
    if any(packet.hidden or packet.pts is None for packet in packets):
        return False
    times_N = np.array([packet.pts for packet in packets])
    latest_N = np.maximum.accumulate(times_N)
    earliest_N = np.minimum.accumulate(times_N[::-1])[::-1]
    keys_N = np.array([packet.key for packet in packets])
    return bool(np.all((latest_N == times_N)[keys_N] & (earliest_N == times_N)[keys_N]))


def _is_like(picture: np.ndarray, thumbnail: np.ndarray) -> bool:
    """Whether a picture of decord is the one that the scan saw at its place."""
    small = Image.fromarray(picture).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    difference = np.abs(np.asarray(small, np.float32) - thumbnail)
    return float(difference.mean()) <= SAME


def _beyond_the_end(stream: av.VideoStream, path: Path) -> int:
    """Frames of which the index says that they lie behind the end of the file."""
    size = os.stat(path).st_size
    return sum(entry.pos + entry.size > size for entry in stream.index_entries)
