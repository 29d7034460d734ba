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
    """The parts of a clip.

    `spans`: the frames of each shot, the longest first. `cuts`: between shots. `left_out`: frames by reason.
    """

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
    frozen_N = _frozen(cells_NC, scan.seconds_N)
    frozen_N &= ~uniform_N
    gradual_N = _gradual(shares_NB, scan.seconds_N, cuts_N | beside_N)
    gradual_N &= ~frozen_N
    gradual_N &= ~uniform_N
    left_out_N = uniform_N | frozen_N | gradual_N
    left_out = Counter[str]()
    reasons = {"uniform": uniform_N, "frozen": frozen_N, "transition": gradual_N}
    for reason, marked_N in reasons.items():
        if marked_N.any():
            left_out[reason] = int(marked_N.sum())
    hard = int(cuts_N[~left_out_N].sum())
    spans = _spans(cuts_N, left_out_N)
    return Shots(spans, hard + _runs(gradual_N), left_out)


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


def _spans(cuts_N: np.ndarray, left_out_N: np.ndarray) -> list[range]:
    """The shots between cuts and frames that are left out, the longest first, equal ones in their order."""
    changes_N = np.diff(left_out_N, prepend=left_out_N[:1])
    starts_N = cuts_N | changes_N
    starts_N[0] = True
    starts = np.flatnonzero(starts_N).tolist()
    edges = [*starts, len(cuts_N)]
    spans = []
    for start, end in pairwise(edges):
        if not left_out_N[start]:
            spans.append(range(start, end))
    return sorted(spans, key=len, reverse=True)


def _runs(marked_N: np.ndarray) -> int:
    """How many runs of marked frames there are."""
    starts = np.diff(marked_N.astype(int), prepend=0) == 1
    return int(starts.sum())


def _histograms(thumbnails_NHWC: np.ndarray) -> np.ndarray:
    """The share of the pixels of each frame that has each of BINS^3 colours, (N, B)."""
    codes_NHWC = thumbnails_NHWC // (256 // BINS)
    colours_NHW = codes_NHWC @ np.array([BINS**2, BINS, 1])
    counts = []
    for colours_HW in colours_NHW:
        pixels = colours_HW.ravel()
        counts.append(np.bincount(pixels, minlength=BINS**3))
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
    differences = np.abs(np.diff(cells_NC, axis=0))
    steps = differences.mean(axis=1)
    ratios = steps / (_usual(steps) + 1.0)
    sudden = (steps > CUT_LEVELS) & (ratios > CUT_RATIO)
    cuts = sudden | (turnover > CUT_HISTOGRAM)
    return np.concatenate([[False], cuts])


def _gradual(
    shares_NB: np.ndarray,
    seconds_N: np.ndarray,
    breaks_N: np.ndarray,
) -> np.ndarray:
    """Whether each frame, (N,) bool, lies in a dissolve or a fade; none reaches over `breaks_N`."""
    gradual_N = np.zeros(len(seconds_N), bool)
    if len(seconds_N) < 3:
        return gradual_N
    step = np.median(np.diff(seconds_N))
    gap = round(GRADUAL_SECONDS / float(step))
    gap = max(gap, 2)
    turnover = _turnover(shares_NB[:-gap], shares_NB[gap:])
    before = np.cumsum(breaks_N)
    broken = before[gap:] != before[:-gap]
    turnover[broken] = 0.0
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
        first = max(0, place - AROUND)
        last = place + AROUND
        near = np.concatenate([steps[first:place], steps[place + 1 : last + 1]])
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
