"""The measures of a film, on motions that are known."""

import numpy as np
import pytest

from pipeline.avatar.measures import BackgroundFlow, correlations, fast_motion, film_measures, size_change
from pipeline.geometry.landmarks import interocular, landmarks_70
from tests.support.small_run import landmarks as mesh

RATE, COUNT = 30, 90
SECONDS = np.arange(COUNT) / RATE


def face() -> np.ndarray:
    points = landmarks_70(np.array(mesh()).reshape(478, 3))
    return np.asarray(points, np.float64)


def shaken(amplitude: float, frequency: float) -> np.ndarray:
    """The face, shifted sideways by a sine; the amplitude is in interocular distances."""
    unit = interocular(face())
    shift = amplitude * unit * np.sin(2 * np.pi * frequency * SECONDS)
    return face()[None] + shift[:, None, None] * np.array([1.0, 0.0])


def test_fast_motion_counts_what_is_above_five_hertz():
    # Half of the coordinates move, by a sine: its root mean square over both is half of the amplitude.
    assert fast_motion(shaken(0.02, 8.0), SECONDS) == pytest.approx(100 * 0.02 / np.sqrt(2), rel=0.05)
    assert fast_motion(shaken(0.2, 1.0), SECONDS) < 0.2
    assert fast_motion(face()[None] + np.linspace(0, 0.1, COUNT)[:, None, None], SECONDS) < 0.01


def test_lost_frames_are_bridged_and_short_films_have_no_measure():
    points = shaken(0.02, 8.0)
    points[10:13] = np.nan
    assert fast_motion(points, SECONDS) == pytest.approx(100 * 0.02 / np.sqrt(2), rel=0.1)
    assert fast_motion(points[:5], SECONDS[:5]) is None
    assert fast_motion(np.full_like(points, np.nan), SECONDS) is None


def test_size_changes_are_relative_and_shifts_are_none():
    growing = face()[None] * (1.01 ** np.arange(5))[:, None, None]
    assert size_change(growing) == pytest.approx(100 * np.log(1.01), rel=1e-6)
    assert size_change(shaken(0.1, 3.0)) < 1e-9


def test_a_result_that_follows_correlates_and_a_still_one_has_no_correlation():
    points = np.repeat(face()[None], COUNT, axis=0)
    points[:, [65, 66, 67], 1] += 0.02 * np.sin(SECONDS)[:, None]
    assert correlations(points, points)["mouth_opening"] == pytest.approx(1.0)
    assert correlations(points, np.repeat(face()[None], COUNT, axis=0))["mouth_opening"] is None
    assert correlations(points, np.full_like(points, np.nan)) == {
        "mouth_opening": None,
        "eye_opening": None,
        "gaze": None,
    }


def test_all_of_a_film_at_once():
    result = shaken(0.01, 8.0)
    result[0] = np.nan
    values = film_measures(shaken(0.02, 8.0), result, SECONDS)
    assert values["found"] == pytest.approx(1 - 1 / COUNT)
    assert values["fast_motion"]["ratio"] == pytest.approx(0.5, rel=0.1)


def flow_of(pictures: list[np.ndarray], mask: np.ndarray) -> float | None:
    flow = BackgroundFlow()
    for picture in pictures:
        flow.add(picture, mask)
    return flow.mean()


def test_background_flow_sees_what_moves_behind_the_person_alone():
    y, x = np.mgrid[:128, :128]
    waves = (127 + 60 * np.sin(x / 5.0) + 60 * np.cos(y / 6.0)).astype(np.uint8)
    moved = [np.roll(waves, number, axis=1) for number in range(3)]
    nobody, somebody = np.zeros((128, 128), np.uint8), np.full((128, 128), 255, np.uint8)
    assert flow_of([waves] * 3, nobody) < 0.02
    assert flow_of(moved, nobody) == pytest.approx(100 / 128, rel=0.15)
    assert flow_of(moved, somebody) is None
