"""Films for people: pictures as H.264 in MP4, at a frame rate or with a time for each.

Equal pictures give equal bytes.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import av
import numpy as np

# One thread is not enough for equal bytes: x264's look-ahead (mb-tree, weighted prediction, B
# frames) was seen to depend on stale memory.
X264 = {
    "crf": "16",
    "preset": "veryfast",
    "threads": "1",
    "x264-params": "mbtree=0:weightp=0:bframes=0:rc-lookahead=0:scenecut=0",
}
# Times are counted in so many steps a second. Pictures at 24, 25, 30 and 30000/1001 a second fall on
# whole steps.
TICKS = 90_000


def frame_rate(mean: float) -> Fraction:
    """The rate that a container's mean frames a second stand for: 29.97 is 30000/1001.

    Raises ValueError unless it is positive.
    """
    if not mean > 0:
        raise ValueError(f"a frame rate is positive, not {mean}")
    return Fraction(mean).limit_denominator(1001)


def encode_mp4(
    pictures: Iterable[np.ndarray],
    rate: Fraction | int,
    seconds: Sequence[float] | None = None,
) -> bytes:
    """A film of `pictures`, uint8 RGB (H, W, 3) of one size with even sides, taken one at a time.

    Without `seconds` each is shown for 1 / `rate`. With it, picture i appears `seconds[i]` after
    the start, which lets a film keep the times of a clip of variable rate or hold a picture; the
    last is shown for 1 / `rate`. Raises ValueError when `seconds` are not as many as the pictures
    or do not ascend.
    """
    ticks = None if seconds is None else [round(TICKS * second) for second in seconds]
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate), options=X264)
        stream.thread_count, stream.pix_fmt = 1, "yuv420p"
        frames = map(_frame, pictures) if ticks is None else _timed_frames(pictures, ticks, rate)
        if ticks is not None:
            stream.codec_context.time_base = Fraction(1, TICKS)
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.height, frame.width
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return sink.getvalue()


def _frame(picture_HWC: np.ndarray) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(picture_HWC, format="rgb24")


def _timed_frames(
    pictures: Iterable[np.ndarray],
    ticks: Sequence[int],
    rate: Fraction | int,
) -> Iterator[av.VideoFrame]:
    """Frames with the time at which they appear and how long they are shown."""
    ends = [*ticks[1:], ticks[-1] + round(TICKS / Fraction(rate))] if ticks else []
    if any(end <= start for start, end in zip(ticks, ends, strict=True)):
        raise ValueError("the times of a film's pictures must ascend")
    for picture, start, end in zip(pictures, ticks, ends, strict=True):
        frame = _frame(picture)
        frame.time_base, frame.pts, frame.duration = Fraction(1, TICKS), start, end - start
        yield frame
