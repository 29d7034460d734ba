"""How good a film is: steady, and moving as the driver does.

Everything is read from pictures, the driver's and the result's, by the face mesh of ingest: an instrument
that Psi has not learnt from. Landmarks are (N, 70, 2) fractions of the aligned square, which both share. A
frame in which no face is found is NaN.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from scipy.signal import butter, sosfiltfilt

from pipeline.geometry.landmarks import interocular
from pipeline.geometry.motion_targets import motion_measures

# Hz. Heads and faces hardly move faster; noise of detection does.
FAST = 5.0
# Nose and outer corners of the eyes, which no expression moves.
RIGID = [27, 28, 29, 30, 33, 36, 45]
NAMES = ("mouth_opening", "eye_opening", "gaze")
# Levels of a mask below which a pixel is background, and the least share of the picture that says something.
PERSON, LEAST_BACKGROUND = 32, 0.02
# Degrees of the driver's head to a side, at which likeness is averaged apart.
YAWS = (0, 10, 20, 90)
# Of the dense flow: scale and levels of the pyramid, window, iterations, neighbourhood, deviation, flags.
FARNEBACK = (0.5, 3, 15, 3, 5, 1.1, 0)


def film_measures(
    driver_N702: np.ndarray,
    result_N702: np.ndarray,
    seconds_N: np.ndarray,
) -> dict[str, Any]:
    """The measures of a film from the landmarks of its driver and of its result.

    `found`: share of the frames in which a face is found. `fast_motion`, `shaking` and `size_change`: see
    there, of both films and their ratio. `correlation`: see `correlations`. None where there is nothing to
    measure.
    """
    found = _has_face(result_N702)
    return {
        "found": float(found.mean()),
        "fast_motion": _compared(
            fast_motion(driver_N702, seconds_N),
            fast_motion(result_N702, seconds_N),
        ),
        "shaking": _compared(
            shaking(driver_N702),
            shaking(result_N702),
        ),
        "size_change": _compared(
            size_change(driver_N702),
            size_change(result_N702),
        ),
        "correlation": correlations(driver_N702, result_N702),
    }


def fast_motion(points_N702: np.ndarray, seconds_N: np.ndarray) -> float | None:
    """Root mean square of the motion of landmarks above FAST, in percent of the interocular distance.

    Frames without a face are bridged by straight lines. None without faces, for less than a second, and for
    too few frames a second to show such motion.
    """
    known = _has_face(points_N702)
    length = seconds_N[-1]
    if not known.any() or length < 1.0 or len(seconds_N) / length < 3 * FAST:
        return None
    # A filter wants even steps, which a telephone's film does not have.
    even = np.linspace(seconds_N[0], length, len(seconds_N))
    faces = points_N702[known]
    flat = faces.reshape(len(faces), -1)
    seconds = seconds_N[known]
    tracks = [np.interp(even, seconds, track) for track in flat.T]
    places = np.stack(tracks)
    step = even[1] - even[0]
    rate = 1 / step
    high_pass = butter(4, FAST, "highpass", fs=rate, output="sos")
    # Forwards and backwards, so that the filter shifts nothing in time.
    fast = sosfiltfilt(high_pass, places, axis=1)
    # Over points and not over coordinates: a shift along one axis counts as long as it is.
    power = 2 * np.square(fast).mean()
    unit = np.median(interocular(faces))
    return 100 * float(np.sqrt(power) / unit)


def shaking(points_N702: np.ndarray) -> float | None:
    """How far landmarks leave the middle between the frames before and after, percent of the interocular
    distance (root mean square). None without three faces running.

    Any clip has it. At few frames a second it counts quick movements of the face as well, so that the
    driver's own says what is usual.
    """
    middle = (points_N702[:-2] + points_N702[2:]) / 2
    aside = points_N702[1:-1] - middle
    known = _has_face(aside)
    if not known.any():
        return None
    faces = points_N702[_has_face(points_N702)]
    # Over points and not over coordinates, as in `fast_motion`.
    power = 2 * np.square(aside[known]).mean()
    unit = np.median(interocular(faces))
    return 100 * float(np.sqrt(power) / unit)


def size_change(points_N702: np.ndarray) -> float | None:
    """Root mean square of the change of the head's size from frame to frame, percent. None below two faces.

    The size is the spread of RIGID about its middle.
    """
    rigid = points_N702[:, RIGID]
    middle = rigid.mean(axis=1, keepdims=True)
    squares = np.square(rigid - middle)
    size = np.sqrt(squares.sum(axis=(1, 2)))
    # The logarithm, so that the change is a share of the size.
    change = np.diff(np.log(size))
    known = change[np.isfinite(change)]
    if not len(known):
        return None
    power = np.square(known).mean()
    return 100 * float(np.sqrt(power))


def correlations(driver_N702: np.ndarray, result_N702: np.ndarray) -> dict[str, float | None]:
    """How the result follows the driver in each of NAMES over the film, -1 to 1; None if one is still."""
    return followed(motion_measures(driver_N702), motion_measures(result_N702))


def followed(
    wanted: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
) -> dict[str, float | None]:
    """The same of measures (N,) that were read already; NaN marks a frame in which nothing was."""
    return {name: _correlation(wanted[name], found[name]) for name in NAMES}


def identity(
    source_K: np.ndarray,
    driver_K: np.ndarray,
    yaw_K: np.ndarray,
) -> dict[str, Any]:
    """Cosines of recognition features of K results to the source and to the driver.

    Their means, the share of results that are `nearer_to_source`, and the means by the yaw of the driver's
    head (degrees) between two of YAWS; None where there is no such frame.
    """
    found: dict[str, Any] = {
        "source": float(source_K.mean()),
        "driver": float(driver_K.mean()),
        "nearer_to_source": float((source_K > driver_K).mean()),
    }
    aside = np.abs(yaw_K)
    for low, high in pairwise(YAWS):
        there = (aside >= low) & (aside < high)
        found[f"yaw_{low}_to_{high}"] = {
            "frames": int(there.sum()),
            "source": _mean(source_K[there]),
            "driver": _mean(driver_K[there]),
        }
    return found


def table(measures: Mapping[str, Any]) -> str:
    """All measures for people: a line each, with a blank where there was nothing to measure."""
    lines = list(_lines(measures, ""))
    width = max((len(name) for name, _ in lines), default=0)
    return "".join(f"{name:{width}} {value:>9}\n" for name, value in lines)


class BackgroundFlow:
    """How far the background moves from frame to frame: the length of the optical flow where no person is."""

    def __init__(self) -> None:
        self.before: tuple[np.ndarray, np.ndarray] | None = None
        self.lengths: list[float] = []

    def add(self, grey_SS: np.ndarray, mask_SS: np.ndarray) -> None:
        """The next frame: a uint8 picture, and 255 where a person is."""
        free = mask_SS < PERSON
        if self.before is not None:
            last, free_before = self.before
            # What the person uncovers or hides has no flow.
            both = free & free_before
            if both.mean() > LEAST_BACKGROUND:
                flow = cv2.calcOpticalFlowFarneback(last, grey_SS, None, *FARNEBACK)
                lengths = np.linalg.norm(flow, axis=2)
                mean = float(lengths[both].mean())
                self.lengths.append(mean / len(grey_SS))
        self.before = grey_SS, free

    def mean(self) -> float | None:
        """Percent of the picture's side a frame; None when there was no background in two frames running."""
        mean = _mean(np.array(self.lengths))
        return None if mean is None else 100 * mean


def _lines(measures: Mapping[str, Any], before: str) -> Iterator[tuple[str, str]]:
    for name, value in measures.items():
        words = f"{before} {name.replace('_', ' ')}".strip()
        if isinstance(value, Mapping):
            yield from _lines(value, words)
        elif value is None:
            yield words, ""
        else:
            yield words, f"{value}" if isinstance(value, int) else f"{value:.3f}"


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _has_face(points_N702: np.ndarray) -> np.ndarray:
    known = np.isfinite(points_N702)
    return known.all(axis=(1, 2))


def _correlation(a_N: np.ndarray, b_N: np.ndarray) -> float | None:
    known = np.isfinite(a_N) & np.isfinite(b_N)
    if known.sum() < 3:
        return None
    a_N, b_N = a_N[known], b_N[known]
    if min(a_N.std(), b_N.std()) < 1e-9:
        return None
    matrix = np.corrcoef(a_N, b_N)
    return float(matrix[0, 1])


def _compared(driver: float | None, result: float | None) -> dict[str, float | None]:
    ratio = result / driver if driver and result is not None else None
    return {"driver": driver, "result": result, "ratio": ratio}
