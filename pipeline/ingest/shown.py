"""A decoded frame as a player shows it: progressive, upright, with square pixels, in sRGB.

Decoders hand out what was coded. A file also says how that is to be turned and mirrored (display matrix), stretched
(sample aspect ratio) and coloured (matrix, range, primaries and transfer function); fields of an interlaced film are
to be brought together. Here all of it is done.
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

# Numbers of ITU-T H.273, which all containers use.
UNSPECIFIED, BT2020_MATRIX = 2, 9
PQ, HLG = 16, 18
# Films without a tag are BT.601 up to this size and BT.709 above it, as players have it.
SMALL_WIDTH, SMALL_HEIGHT = 1280, 576
# The brightness of paper in HDR (BT.2408), which becomes the white of sRGB; what is brighter is cut off.
WHITE = 203.0
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2
LUMA_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)
LEVELS = 4096
# Linear light of other primaries to that of BT.709, all with the white D65.
TO_BT709 = {
    9: np.array(
        [[1.66049, -0.58764, -0.07285], [-0.12455, 1.13290, -0.00835], [-0.01815, -0.10058, 1.11873]],
        np.float32,
    ),
    12: np.array(
        [[1.22494, -0.22494, 0.0], [-0.04206, 1.04206, 0.0], [-0.01964, -0.07864, 1.09827]], np.float32
    ),
}


class Timed(NamedTuple):
    """A decoded frame and the seconds at which it is shown."""

    seconds: float
    frame: av.VideoFrame


def is_plain(frame: av.VideoFrame, aspect: Fraction | None) -> bool:
    """Whether a plain conversion to RGB shows the frame right."""
    tagged = frame.colorspace != UNSPECIFIED or not _is_large(frame)
    wide = _transfer(frame) is not None or int(frame.color_primaries) in TO_BT709
    upright = _orientation(frame) == (False, False, False)
    return upright and tagged and not wide and not frame.interlaced_frame and (aspect or 1) == 1


def to_picture(frame: av.VideoFrame, aspect: Fraction | None) -> np.ndarray:
    """uint8 sRGB (H, W, 3) of a progressive frame whose pixels have the `aspect` width over height."""
    width, height = frame.width, frame.height
    # The shorter side is stretched, so that nothing is thrown away.
    if aspect and aspect > 1:
        width = round(width * aspect)
    elif aspect and aspect > 0:
        height = round(height / aspect)
    matrix = None
    if int(frame.colorspace) == UNSPECIFIED and _is_large(frame):
        matrix = Colorspace.ITU709
    transfer = _transfer(frame)
    if transfer is not None:
        matrix = BT2020_MATRIX if int(frame.colorspace) == UNSPECIFIED else matrix
    wide = transfer is not None or int(frame.color_primaries) in TO_BT709
    coded = frame.reformat(width, height, "rgb48le" if wide else "rgb24", src_colorspace=matrix, threads=1)
    picture = coded.to_ndarray()
    if wide:
        picture = _to_srgb(picture, transfer, int(frame.color_primaries))
    transpose, flip_x, flip_y = _orientation(frame)
    if transpose:
        picture = picture.transpose(1, 0, 2)
    if flip_x:
        picture = picture[:, ::-1]
    if flip_y:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)


def progressive(frames: Iterable[Timed]) -> Iterator[Timed]:
    """The frames, from the first interlaced one on through a deinterlacer: one frame out for each that goes in.

    The filter holds a frame back, so the times wait in a queue. A change of the size of the picture starts it anew.
    """
    graph, shape = None, None
    waiting: deque[float] = deque()
    for seconds, frame in frames:
        if graph is None and not frame.interlaced_frame:
            yield Timed(seconds, frame)
            continue
        if graph is None or shape != (frame.width, frame.height, frame.format.name):
            yield from _drain(graph, waiting)
            shape = (frame.width, frame.height, frame.format.name)
            graph = _deinterlacer(frame)
        graph.push(frame)
        waiting.append(seconds)
        yield from _pull(graph, waiting)
    yield from _drain(graph, waiting)


def _deinterlacer(frame: av.VideoFrame) -> av.filter.Graph:
    graph = av.filter.Graph()
    unit = Fraction(1, 90_000)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=unit)
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
    if graph is not None:
        graph.push(None)
        yield from _pull(graph, waiting)
        waiting.clear()


def _is_large(frame: av.VideoFrame) -> bool:
    return frame.width >= SMALL_WIDTH or frame.height > SMALL_HEIGHT


def _transfer(frame: av.VideoFrame) -> int | None:
    """PQ or HLG, None for what is shown as it is."""
    transfer = int(frame.color_trc)
    return transfer if transfer in (PQ, HLG) else None


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Whether to transpose, then to flip left and right, then up and down, by the display matrix.

    The matrix (16.16 fixed point) takes a coded point (p, q) to (a p + c q, b p + d q), y down. Turns between right
    angles are brought to the nearest.
    """
    data = frame.side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if max(abs(b), abs(c)) > max(abs(a), abs(d)):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def _to_srgb(picture: np.ndarray, transfer: int | None, primaries: int) -> np.ndarray:
    """uint8 sRGB of uint16 RGB in another transfer function or with other primaries, (H, W, 3) both."""
    linear = _linear(transfer)[picture >> 4]
    if transfer == HLG:
        luma = linear @ LUMA_2020
        linear *= (HLG_PEAK / WHITE) * np.power(luma, HLG_GAMMA - 1.0)[..., None]
    if primaries in TO_BT709:
        linear = linear @ TO_BT709[primaries].T
    # A highlight is scaled as a whole, so that its hue stays.
    linear = linear / np.maximum(linear.max(axis=-1, keepdims=True), 1.0)
    linear = np.clip(linear, 0.0, 1.0)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.power(linear, 1 / 2.4) - 0.055)
    return (curved * 255.0 + 0.5).astype(np.uint8)


@cache
def _linear(transfer: int | None) -> np.ndarray:
    """Linear light of LEVELS code values, float32: white is 1, for HLG the light of the scene in [0, 1]."""
    code = np.linspace(0.0, 1.0, LEVELS)
    if transfer == PQ:
        root = np.power(code, 1 / 78.84375)
        ratio = np.maximum(root - 0.8359375, 0.0) / (18.8515625 - 18.6875 * root)
        light = 10_000.0 / WHITE * np.power(ratio, 1 / 0.1593017578125)
    elif transfer == HLG:
        upper = (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12.0
        light = np.where(code <= 0.5, code**2 / 3.0, upper)
    else:
        light = np.where(code <= 0.04045, code / 12.92, np.power((code + 0.055) / 1.055, 2.4))
    return light.astype(np.float32)
