"""A decoded frame as a player shows it: progressive, upright, with square pixels, in sRGB.

Decoders hand out what was coded. A file also says how that is to be turned and mirrored (display matrix),
stretched (sample aspect ratio) and coloured (matrix, range, primaries and transfer function), and whether the
lines of a frame are of two moments (interlaced). Here all of it is done.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import cache
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import Colorspace

from pipeline.ingest.files import Rejected

# Numbers of ITU-T H.273, which all containers use: matrices that can be undone, and transfer functions whose
# pictures are shown as they are. FCC, SMPTE 240M and those of BT.601, 709 and 2020 are among them.
UNSPECIFIED = 2
MATRICES = frozenset({0, 1, UNSPECIFIED, 3, 4, 5, 6, 7, 9, 10})
PQ, HLG = 16, 18
SHOWN_AS_THEY_ARE = frozenset({0, 1, UNSPECIFIED, 3, 4, 5, 6, 7, 11, 12, 13, 14, 15})
# Films without a tag are BT.601 below this size and BT.709 from it on, as players have it.
LARGE_WIDTH, LARGE_HEIGHT = 1280, 577
# The brightness in cd/m2 of paper in HDR (BT.2408), which becomes the white of sRGB. What is brighter is cut
# off.
WHITE = 203.0
# The display for which HLG is meant, and the gamma that takes light of the scene to light of that display
# (BT.2100).
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2
LUMA_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)
LEVELS = 4096
# Linear light of BT.2020 (9) and of Display P3 (12) to that of BT.709; all have the white D65.
TO_BT709 = {
    9: np.array(
        [
            [1.66049, -0.58764, -0.07285],
            [-0.12455, 1.13290, -0.00835],
            [-0.01815, -0.10058, 1.11873],
        ],
        np.float32,
    ),
    12: np.array(
        [
            [1.22494, -0.22494, 0.0],
            [-0.04206, 1.04206, 0.0],
            [-0.01964, -0.07864, 1.09827],
        ],
        np.float32,
    ),
}


class Timed(NamedTuple):
    """A decoded frame and the seconds at which it is shown."""

    seconds: float
    frame: av.VideoFrame


class Orientation(NamedTuple):
    """How to turn a picture: `transpose` it, then flip left and right, then up and down."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False


def is_plain(frame: av.VideoFrame, aspect: Fraction | None) -> bool:
    """Whether a plain conversion to RGB shows the frame right."""
    tagged = int(frame.colorspace) != UNSPECIFIED or not _is_large(frame)
    upright = _orientation(frame) == Orientation()
    square = aspect is None or aspect == 1
    return tagged and upright and square and not _is_wide(frame) and not frame.interlaced_frame


def to_picture(frame: av.VideoFrame, aspect: Fraction | None) -> np.ndarray:
    """uint8 sRGB (H, W, 3) of a progressive frame whose pixels have the `aspect` width over height.

    Raises Rejected for colours that cannot be converted: wrong ones would not be noticed.
    """
    _check_colours(frame)
    width, height = frame.width, frame.height
    # The shorter side is stretched, so that nothing is thrown away.
    if aspect and aspect > 1:
        width = round(width * aspect)
    elif aspect and aspect > 0:
        height = round(height / aspect)
    wide = _is_wide(frame)
    coded = frame.reformat(
        width,
        height,
        "rgb48le" if wide else "rgb24",
        src_colorspace=_matrix(frame),
        threads=1,
    )
    picture = coded.to_ndarray()
    if wide:
        picture = _to_srgb(picture, int(frame.color_trc), int(frame.color_primaries))
    return _turned(picture, _orientation(frame))


def progressive(frames: Iterable[Timed]) -> Iterator[Timed]:
    """The frames, from the first interlaced one on through a deinterlacer: one frame out for each that goes
    in.

    The filter holds a frame back, so the times wait in a queue. A change of the size of the picture starts it
    anew.
    """
    graph, shape = None, None
    waiting: deque[float] = deque()
    for seconds, frame in frames:
        if graph is None and not frame.interlaced_frame:
            yield Timed(seconds, frame)
            continue
        now = (frame.width, frame.height, frame.format.name)
        if graph is None or shape != now:
            yield from _drain(graph, waiting)
            graph, shape = _deinterlacer(frame), now
        graph.push(frame)
        waiting.append(seconds)
        yield from _pull(graph, waiting)
    yield from _drain(graph, waiting)


def _deinterlacer(frame: av.VideoFrame) -> av.filter.Graph:
    graph = av.filter.Graph()
    # The times of the filter are not used, but it wants a unit for them.
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=Fraction(1, 90_000),
    )
    bwdif = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
    sink = graph.add("buffersink")
    source.link_to(bwdif)
    bwdif.link_to(sink)
    graph.configure()
    return graph


def _pull(graph: av.filter.Graph, waiting: deque[float]) -> Iterator[Timed]:
    while waiting:
        try:
            frame = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        yield Timed(waiting.popleft(), frame)


def _drain(graph: av.filter.Graph | None, waiting: deque[float]) -> Iterator[Timed]:
    if graph is None:
        return
    graph.push(None)
    yield from _pull(graph, waiting)
    waiting.clear()


def _check_colours(frame: av.VideoFrame) -> None:
    matrix, transfer = int(frame.colorspace), int(frame.color_trc)
    if matrix not in MATRICES:
        raise Rejected(f"colours that cannot be converted: matrix {matrix} of H.273")
    if transfer not in (*SHOWN_AS_THEY_ARE, PQ, HLG):
        raise Rejected(f"colours that cannot be converted: transfer function {transfer} of H.273")


def _is_large(frame: av.VideoFrame) -> bool:
    return frame.width >= LARGE_WIDTH or frame.height >= LARGE_HEIGHT


def _is_wide(frame: av.VideoFrame) -> bool:
    """Whether the frame is HDR or has primaries that are not nearly those of sRGB."""
    return int(frame.color_trc) in (PQ, HLG) or int(frame.color_primaries) in TO_BT709


def _matrix(frame: av.VideoFrame) -> Colorspace | None:
    """The matrix of a frame that does not say its own, None where it does."""
    if int(frame.colorspace) != UNSPECIFIED:
        return None
    if _is_wide(frame):
        return Colorspace.BT2020
    return Colorspace.ITU709 if _is_large(frame) else None


def _orientation(frame: av.VideoFrame) -> Orientation:
    """How to turn a frame by its display matrix.

    The matrix (16.16 fixed point) takes a coded point (p, q) to (a p + c q, b p + d q), y down. Turns between
    right angles are brought to the nearest.
    """
    data = frame.side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return Orientation()
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if max(abs(b), abs(c)) > max(abs(a), abs(d)):
        return Orientation(True, c < 0, b < 0)
    return Orientation(False, a < 0, d < 0)


def _turned(picture: np.ndarray, orientation: Orientation) -> np.ndarray:
    if orientation.transpose:
        picture = picture.transpose(1, 0, 2)
    if orientation.flip_x:
        picture = picture[:, ::-1]
    if orientation.flip_y:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)


def _to_srgb(
    picture: np.ndarray,
    transfer: int,
    primaries: int,
) -> np.ndarray:
    """uint8 sRGB of uint16 RGB in another transfer function or with other primaries, (H, W, 3) both."""
    curve = _linear(transfer)
    linear = curve[picture >> 4]
    if transfer == HLG:
        luma = linear @ LUMA_2020
        gain = np.power(luma, HLG_GAMMA - 1.0) * (HLG_PEAK / WHITE)
        linear = linear * gain[..., None]
    if primaries in TO_BT709:
        linear = linear @ TO_BT709[primaries].T
    # A highlight is scaled as a whole, so that its hue stays.
    brightest = linear.max(axis=-1, keepdims=True)
    linear = linear / np.maximum(brightest, 1.0)
    linear = np.clip(linear, 0.0, 1.0)
    dark = 12.92 * linear
    bright = 1.055 * np.power(linear, 1 / 2.4) - 0.055
    curved = np.where(linear <= 0.0031308, dark, bright)
    return (curved * 255.0 + 0.5).astype(np.uint8)


@cache
def _linear(transfer: int) -> np.ndarray:
    """Linear light of LEVELS code values, float32: white is 1, and for HLG the light of the scene in [0,
    1]."""
    code = np.linspace(0.0, 1.0, LEVELS)
    # Equations of BT.2100 for PQ and HLG; other films have the curve of sRGB, as they are shown with it.
    if transfer == PQ:
        root = np.power(code, 1 / 78.84375)
        ratio = np.maximum(root - 0.8359375, 0.0) / (18.8515625 - 18.6875 * root)
        light = 10_000.0 / WHITE * np.power(ratio, 1 / 0.1593017578125)
    elif transfer == HLG:
        upper = (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12.0
        light = np.where(code <= 0.5, code**2 / 3.0, upper)
    else:
        upper = np.power((code + 0.055) / 1.055, 2.4)
        light = np.where(code <= 0.04045, code / 12.92, upper)
    return light.astype(np.float32)
