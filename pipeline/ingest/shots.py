"""Which frames of a clip belong together: the shots between its cuts, without uniform and frozen frames.

All is judged by the thumbnails of `Video.scan`. On eleven films of talking people the histograms of neighbouring
frames differ by at most 0.09, and by 0.58 and more where one person follows another.
"""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from pipeline.ingest.video import Scan

# A cut: the share of the pixels that change their colour (of 64), or a step in levels that is both large and many
# times that of the frames around it.
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
    uniform_N = scan.thumbnails_NHWC.std(axis=(1, 2)).max(axis=-1) < UNIFORM
    frozen_N = _frozen(cells_NC, scan.seconds_N) & ~uniform_N
    cuts_N = _cuts(scan.thumbnails_NHWC, cells_NC)
    left_out_N = uniform_N | frozen_N
    starts_N = cuts_N | np.diff(left_out_N, prepend=left_out_N[:1])
    edges = [0, *np.flatnonzero(starts_N[1:]) + 1, len(scan)]
    spans = []
    for start, end in pairwise(edges):
        if not left_out_N[start]:
            spans.append(range(int(start), int(end)))
    spans.sort(key=lambda span: (-len(span), span.start))
    counts = Counter(uniform=int(uniform_N.sum()), frozen=int(frozen_N.sum()))
    return Shots(spans, max(len(spans) - 1, 0), +counts)


def moves(scan: Scan, span: range) -> bool:
    """Whether something moves in the frames of `span`."""
    cells_NC = scan.thumbnails_NHWC[span.start : span.stop].astype(np.int16)
    return len(span) < 2 or int(np.ptp(cells_NC, axis=0).max()) >= STILL


def choose_frames(span: range, most: int) -> list[int]:
    """At most `most` frames of `span`, each from the middle of an equal part of it."""
    count = min(most, len(span))
    return [span.start + (2 * part + 1) * len(span) // (2 * count) for part in range(count)]


def _cuts(thumbnails_NHWC: np.ndarray, cells_NC: np.ndarray) -> np.ndarray:
    """Whether each frame is the first after a cut, (N,) bool; the first frame of all is not."""
    codes = thumbnails_NHWC // (256 // BINS)
    colours_NHW = (codes[..., 0] * BINS + codes[..., 1]) * BINS + codes[..., 2]
    histograms = [np.bincount(one.ravel(), minlength=BINS**3) for one in colours_NHW]
    share_NB = np.array(histograms) / colours_NHW[0].size
    turnover = np.abs(np.diff(share_NB, axis=0)).sum(axis=1) / 2
    steps = np.abs(np.diff(cells_NC, axis=0)).mean(axis=1)
    usual = np.zeros_like(steps)
    for place in range(len(steps)):
        before = steps[max(0, place - AROUND) : place]
        after = steps[place + 1 : place + 1 + AROUND]
        near = np.concatenate([before, after])
        usual[place] = np.median(near) if len(near) else 0.0
    sudden = (steps > CUT_LEVELS) & (steps > CUT_RATIO * (usual + 1.0))
    return np.concatenate([[False], (turnover > CUT_HISTOGRAM) | sudden])


def _frozen(cells_NC: np.ndarray, seconds_N: np.ndarray) -> np.ndarray:
    """Whether each frame, (N,) bool, repeats those before it for long. The first of such a run does not."""
    frozen_N = np.zeros(len(cells_NC), bool)
    largest = np.abs(np.diff(cells_NC, axis=0)).max(axis=1)
    same = np.concatenate([[False], largest <= SAME])
    changes = np.flatnonzero(np.diff(same.astype(int), prepend=0, append=0))
    for start, end in changes.reshape(-1, 2):
        lasts = seconds_N[end - 1] - seconds_N[start - 1]
        if lasts >= FROZEN_SECONDS and end - start >= FROZEN_FRAMES:
            frozen_N[start:end] = True
    # A clip of nothing else is left whole: that nothing moves is then its reason.
    return frozen_N if not frozen_N[1:].all() else np.zeros_like(frozen_N)
