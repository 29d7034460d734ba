"""Which frames of a clip belong together: the shots between its cuts, without uniform and frozen frames.

All is judged by the thumbnails of `Video.scan`. On eleven films of talking people the histograms of neighbouring
frames differ by at most 0.09, and by 0.58 and more where one person follows another.
"""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from pipeline.ingest.video import Scan

# A cut is where this share of the pixels changes its colour (of 64 colours), or where the thumbnails differ by a step
# in levels that is both large and so many times that of the frames around it.
CUT_HISTOGRAM = 0.3
CUT_LEVELS, CUT_RATIO = 10.0, 6.0
AROUND = 6
BINS = 4
# Deviation over a thumbnail, in levels, below which there is nothing in the picture: black, or a plain card.
UNIFORM = 4.0
# A film stands still where no cell of the thumbnails changes by more than SAME levels for so many seconds and frames.
# On films of people, one frame in a row is the most.
SAME, FROZEN_SECONDS, FROZEN_FRAMES = 2.0, 1.0, 5
# Levels by which one of the cells of the thumbnails must change in a clip of somebody who moves. A photo coded as a
# film stays at 10 or below, eleven films of people have 55 and more.
STILL = 16.0


@dataclass(frozen=True)
class Shots:
    """`spans`: the frames of each shot, the longest first. `cuts`: between them. `left_out`: frames by reason."""

    spans: list[range]
    cuts: int
    left_out: Counter[str] = field(default_factory=Counter)


def find_shots(scan: Scan) -> Shots:
    """The shots of a clip of at least one frame."""
    cells_NC = scan.thumbnails_NHWC.reshape(len(scan), -1).astype(np.float32)
    deviation_NC = scan.thumbnails_NHWC.std(axis=(1, 2))
    uniform_N = deviation_NC.max(axis=-1) < UNIFORM
    frozen_N = _frozen(cells_NC, scan.seconds_N) & ~uniform_N
    left_out_N = uniform_N | frozen_N
    # A shot also ends where frames are left out, and begins behind them.
    changes_N = np.diff(left_out_N, prepend=left_out_N[:1])
    starts_N = changes_N | _cuts(scan.thumbnails_NHWC, cells_NC)
    inner = np.flatnonzero(starts_N[1:]) + 1
    edges = [0, *inner.tolist(), len(scan)]
    spans = [range(start, end) for start, end in pairwise(edges) if not left_out_N[start]]
    spans.sort(key=lambda span: (-len(span), span.start))
    counts = Counter(uniform=int(uniform_N.sum()), frozen=int(frozen_N.sum()))
    # The plus drops reasons with no frame.
    return Shots(spans, max(len(spans) - 1, 0), +counts)


def moves(scan: Scan, span: range) -> bool:
    """Whether something moves in the frames of `span`."""
    shot_NHWC = scan.thumbnails_NHWC[span.start : span.stop]
    largest = int(np.ptp(shot_NHWC.astype(np.int16), axis=0).max())
    return len(span) < 2 or largest >= STILL


def choose_frames(span: range, most: int) -> list[int]:
    """At most `most` frames of `span`, each from the middle of an equal part of it."""
    count = min(most, len(span))
    chosen = []
    for part in range(count):
        middle = (2 * part + 1) * len(span) // (2 * count)
        chosen.append(span.start + middle)
    return chosen


def _cuts(thumbnails_NHWC: np.ndarray, cells_NC: np.ndarray) -> np.ndarray:
    """Whether each frame is the first after a cut, (N,) bool; the first frame of all is not."""
    codes = thumbnails_NHWC // (256 // BINS)
    colours_NHW = (codes[..., 0] * BINS + codes[..., 1]) * BINS + codes[..., 2]
    histograms = [np.bincount(colours_HW.ravel(), minlength=BINS**3) for colours_HW in colours_NHW]
    shares_NB = np.array(histograms) / colours_NHW[0].size
    turnover = np.abs(np.diff(shares_NB, axis=0)).sum(axis=1) / 2
    steps = np.abs(np.diff(cells_NC, axis=0)).mean(axis=1)
    usual = _usual(steps)
    sudden = (steps > CUT_LEVELS) & (steps > CUT_RATIO * (usual + 1.0))
    cuts = (turnover > CUT_HISTOGRAM) | sudden
    return np.concatenate([[False], cuts])


def _usual(steps: np.ndarray) -> np.ndarray:
    """For every step between two frames the median of those around it, without itself."""
    usual = np.zeros_like(steps)
    for place in range(len(steps)):
        before = steps[max(0, place - AROUND) : place]
        after = steps[place + 1 : place + 1 + AROUND]
        near = np.concatenate([before, after])
        if len(near):
            usual[place] = np.median(near)
    return usual


def _frozen(cells_NC: np.ndarray, seconds_N: np.ndarray) -> np.ndarray:
    """Whether each frame, (N,) bool, repeats those before it for long. The first of such a run does not."""
    frozen_N = np.zeros(len(cells_NC), bool)
    largest = np.abs(np.diff(cells_NC, axis=0)).max(axis=1)
    same_N = np.concatenate([[0], largest <= SAME]).astype(int)
    edges = np.diff(same_N, prepend=0, append=0)
    for start, end in np.flatnonzero(edges).reshape(-1, 2):
        lasts = seconds_N[end - 1] - seconds_N[start - 1]
        if lasts >= FROZEN_SECONDS and end - start >= FROZEN_FRAMES:
            frozen_N[start:end] = True
    # A clip of nothing else is left whole: its reason is then that nothing moves.
    if frozen_N[1:].all():
        return np.zeros_like(frozen_N)
    return frozen_N
