"""How good a film is: steady, moving as the driver does, and still of the same person.

Everything is read from pictures, the driver's and the result's, by the face mesh of ingest: an instrument
that Psi has not learnt from. Landmarks are (N, 70, 2) fractions of the aligned square, which both share. A
frame in which no face is found is NaN.
"""

from typing import Any

import cv2
import numpy as np
from scipy.signal import butter, sosfiltfilt

from pipeline.geometry.landmarks import interocular
from pipeline.geometry.motion_targets import motion_measures

FAST = 5.0  # Hz; heads and faces hardly move faster, noise does
NAMES = ("mouth_opening", "eye_opening", "gaze")


def film_measures(driver_N702: np.ndarray, result_N702: np.ndarray, seconds_N: np.ndarray) -> dict[str, Any]:
    """The measures of a film from the landmarks of its driver and of its result.

    `found`: share of the frames in which a face is found. `fast_motion` and `size_change`: see there, of both
    films and their ratio. `correlation`: see `correlations`. None where there is nothing to measure.
    """
    found = np.isfinite(result_N702).all(axis=(1, 2))
    tracks = {"driver": driver_N702, "result": result_N702}
    fast = {name: fast_motion(points, seconds_N) for name, points in tracks.items()}
    size = {name: size_change(points) for name, points in tracks.items()}
    return {
        "found": float(found.mean()),
        "fast_motion": fast | {"ratio": _ratio(fast["result"], fast["driver"])},
        "size_change": size | {"ratio": _ratio(size["result"], size["driver"])},
        "correlation": correlations(driver_N702, result_N702),
    }


def fast_motion(points_N702: np.ndarray, seconds_N: np.ndarray) -> float | None:
    """Root mean square of the motion of landmarks above FAST, in percent of the interocular distance.

    Frames without a face are bridged by straight lines. None without faces, for less than a second, and for
    too few frames a second to show such motion.
    """
    known = np.isfinite(points_N702).all(axis=(1, 2))
    if not known.any() or seconds_N[-1] < 1.0 or len(seconds_N) / seconds_N[-1] < 3 * FAST:
        return None
    # A filter wants even steps, which a telephone's film does not have.
    even = np.linspace(seconds_N[0], seconds_N[-1], len(seconds_N))
    tracks = points_N702[known].reshape(int(known.sum()), -1)
    places = np.stack([np.interp(even, seconds_N[known], track) for track in tracks.T], axis=1)
    filter_ = butter(4, FAST, "highpass", fs=1 / (even[1] - even[0]), output="sos")
    fast = sosfiltfilt(filter_, places, axis=0)
    unit = float(np.median(interocular(points_N702[known])))
    return 100 * float(np.sqrt(2 * np.square(fast).mean())) / unit


def size_change(points_N702: np.ndarray) -> float | None:
    """Root mean square of the change of the head's size from frame to frame, percent. None below two faces.

    The size is the spread of nose and outer eye corners, which no expression moves.
    """
    rigid = points_N702[:, [27, 28, 29, 30, 33, 36, 45]]
    centred = rigid - rigid.mean(axis=1, keepdims=True)
    size = np.sqrt(np.square(centred).sum(axis=(1, 2)))
    change = np.diff(np.log(size))
    change = change[np.isfinite(change)]
    return 100 * float(np.sqrt(np.square(change).mean())) if len(change) else None


def correlations(driver_N702: np.ndarray, result_N702: np.ndarray) -> dict[str, float | None]:
    """How the result follows the driver in each of NAMES over the film, -1 to 1; None if one is still."""
    both = np.isfinite(driver_N702).all(axis=(1, 2)) & np.isfinite(result_N702).all(axis=(1, 2))
    if both.sum() < 3:
        return dict.fromkeys(NAMES)
    wanted, found = motion_measures(driver_N702[both]), motion_measures(result_N702[both])
    return {name: _correlation(wanted[name], found[name]) for name in NAMES}


def background_flow(pictures: np.ndarray, masks: np.ndarray) -> float | None:
    """How far the background moves from frame to frame, percent of the picture's side.

    The mean length of the optical flow where neither of two frames has a person: `pictures` are uint8 (N, S,
    S, 3), `masks` (N, S, S) with 255 for a person. None without such pixels.
    """
    grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pictures]
    lengths = []
    for number in range(1, len(grey)):
        free = (masks[number - 1] < 32) & (masks[number] < 32)
        if free.mean() < 0.02:
            continue
        flow = cv2.calcOpticalFlowFarneback(grey[number - 1], grey[number], None, 0.5, 3, 15, 3, 5, 1.1, 0)
        lengths.append(float(np.linalg.norm(flow, axis=2)[free].mean()))
    return 100 * float(np.mean(lengths)) / grey[0].shape[0] if lengths else None


def _correlation(a_N: np.ndarray, b_N: np.ndarray) -> float | None:
    if min(a_N.std(), b_N.std()) < 1e-9:
        return None
    return float(np.corrcoef(a_N, b_N)[0, 1])


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None
