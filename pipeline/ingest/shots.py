"""Which frames of a clip belong together: the shots between its cuts, without uniform and frozen frames.

All is judged by the thumbnails of `Video.scan`. On eleven films of talking people the histograms of
neighbouring frames differ by at most 0.09, and by 0.58 and more where one person follows another.
"""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from pipeline.ingest.video import Scan

# A cut is where this share of the pixels changes its colour (of 64 colours), or where the thumbnails differ
# by a step in levels that is both large and so many times that of the frames around it.
CUT_HISTOGRAM = 0.3
CUT_LEVELS, CUT_RATIO = 10.0, 6.0
AROUND = 6
BINS = 4
# Deviation over a thumbnail, in levels, below which there is nothing in the picture: black, or a plain card.
UNIFORM = 4.0
# Where one picture dissolves into the next, this share of the pixels changes its colour over so many seconds.
# Films of people stay below 0.2.
GRADUAL_HISTOGRAM, GRADUAL_SECONDS = 0.4, 0.8
# A film stands still where no cell of the thumbnails changes by as many levels in so many seconds and frames.
# Films of people have 18 and more, coded photos at most 9.
FROZEN_LEVELS, FROZEN_SECONDS, FROZEN_FRAMES = 12.0, 1.0, 5
# Levels by which one of the cells of the thumbnails must change in a clip of somebody who moves. A photo
# coded as a film stays at 10 or below, eleven films of people have 55 and more.
STILL = 16.0


@dataclass(frozen=True)
class Shots:
    """`spans`: the frames of each shot, the longest first. `cuts`: between them. `left_out`: frames by
    reason."""

    spans: list[range]
    cuts: int
    left_out: Counter[str] = field(default_factory=Counter)


def find_shots(scan: Scan) -> Shots:
    """The shots of a clip of at least one frame."""
    cells_NC = scan.thumbnails_NHWC.reshape(len(scan), -1).astype(np.float32)
    shares_NB = _histograms(scan.thumbnails_NHWC)
    uniform_N = _uniform(scan.thumbnails_NHWC)
    # From black to a picture is no cut between two shots.
    beside_N = uniform_N | np.roll(uniform_N, 1)
    cuts_N = _cuts(shares_NB, cells_NC) & ~beside_N
    frozen_N = _frozen(cells_NC, scan.seconds_N) & ~uniform_N
    gradual_N = _gradual(shares_NB, scan.seconds_N, cuts_N | beside_N) & ~frozen_N & ~uniform_N
    left_out_N = uniform_N | frozen_N | gradual_N
    # A shot also ends where frames are left out, and begins behind them.
    starts_N = cuts_N | np.diff(left_out_N, prepend=left_out_N[:1])
    inner = np.flatnonzero(starts_N[1:]) + 1
    edges = [0, *inner.tolist(), len(scan)]
    spans = [range(start, end) for start, end in pairwise(edges) if not left_out_N[start]]
    spans.sort(key=lambda span: (-len(span), span.start))
    counts = {"uniform": uniform_N.sum(), "frozen": frozen_N.sum(), "transition": gradual_N.sum()}
    left_out = Counter({reason: int(count) for reason, count in counts.items() if count})
    cuts = int(cuts_N[~left_out_N].sum()) + _runs(gradual_N)
    return Shots(spans, cuts, left_out)


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


def _runs(marked_N: np.ndarray) -> int:
    """How many runs of marked frames there are."""
    starts = np.diff(marked_N.astype(int), prepend=0) == 1
    return int(starts.sum())


def _histograms(thumbnails_NHWC: np.ndarray) -> np.ndarray:
    """The share of the pixels of each frame that has each of BINS^3 colours, (N, B)."""
    codes = thumbnails_NHWC // (256 // BINS)
    colours_NHW = (codes[..., 0] * BINS + codes[..., 1]) * BINS + codes[..., 2]
    counts = [np.bincount(colours_HW.ravel(), minlength=BINS**3) for colours_HW in colours_NHW]
    return np.array(counts) / colours_NHW[0].size


def _uniform(thumbnails_NHWC: np.ndarray) -> np.ndarray:
    """Whether there is nothing in each frame, (N,) bool."""
    deviation_NC = thumbnails_NHWC.std(axis=(1, 2))
    return deviation_NC.max(axis=-1) < UNIFORM


def _turnover(before_NB: np.ndarray, after_NB: np.ndarray) -> np.ndarray:
    """The share of the pixels that have another colour, (N,)."""
    return np.abs(after_NB - before_NB).sum(axis=1) / 2


def _cuts(shares_NB: np.ndarray, cells_NC: np.ndarray) -> np.ndarray:
    """Whether each frame is the first after a cut, (N,) bool; the first frame of all is not."""
    turnover = _turnover(shares_NB[:-1], shares_NB[1:])
    steps = np.abs(np.diff(cells_NC, axis=0)).mean(axis=1)
    usual = _usual(steps)
    sudden = (steps > CUT_LEVELS) & (steps > CUT_RATIO * (usual + 1.0))
    cuts = (turnover > CUT_HISTOGRAM) | sudden
    return np.concatenate([[False], cuts])


def _gradual(shares_NB: np.ndarray, seconds_N: np.ndarray, breaks_N: np.ndarray) -> np.ndarray:
    """Whether each frame, (N,) bool, lies in a dissolve or a fade; none reaches over `breaks_N`."""
    gradual_N = np.zeros(len(seconds_N), bool)
    if len(seconds_N) < 3:
        return gradual_N
    step = float(np.median(np.diff(seconds_N)))
    gap = max(2, round(GRADUAL_SECONDS / step))
    turnover = _turnover(shares_NB[:-gap], shares_NB[gap:])
    breaks = np.cumsum(breaks_N)
    within = breaks[gap:] == breaks[:-gap]
    turnover = np.where(within, turnover, 0.0)
    # The steepest place first: what it covers is not looked at again.
    while len(turnover) and turnover.max() > GRADUAL_HISTOGRAM:
        place = int(turnover.argmax())
        gradual_N[place + 1 : place + gap] = True
        turnover[max(0, place - gap) : place + gap] = 0.0
    return gradual_N


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
    """Whether each frame, (N,) bool, is like those before it for long. The first of such frames is not."""
    frozen_N = np.zeros(len(cells_NC), bool)
    ends = np.searchsorted(seconds_N, seconds_N + FROZEN_SECONDS - 1e-6)
    for start, end in enumerate(ends):
        if end == len(seconds_N) or end - start < FROZEN_FRAMES:
            continue
        window = cells_NC[start : end + 1]
        if np.ptp(window, axis=0).max() < FROZEN_LEVELS:
            frozen_N[start + 1 : end + 1] = True
    # A clip of nothing else is left whole: its reason is then that nothing moves.
    if frozen_N[1:].all():
        return np.zeros_like(frozen_N)
    return frozen_N
