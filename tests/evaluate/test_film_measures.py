"""The measures of a film, on motions that are known."""

import numpy as np
import pytest

from pipeline.evaluate.film_measures import (
    NAMES,
    BackgroundFlow,
    correlations,
    fast_motion,
    film_measures,
    identity,
    shaking,
    size_change,
    table,
)
from pipeline.geometry.landmarks import interocular, landmarks_70
from tests.support.small_run import landmarks as mesh

RATE, COUNT = 30, 90
SECONDS = np.arange(COUNT) / RATE


def face() -> np.ndarray:
    """Landmarks (70, 2) of a face."""
    points = np.array(mesh()).reshape(478, 3)
    return np.asarray(landmarks_70(points), np.float64)


def still(count: int = COUNT) -> np.ndarray:
    """The face in `count` frames, (count, 70, 2)."""
    return np.repeat(face()[None], count, axis=0)


def shaken(amplitude: float, frequency: float) -> np.ndarray:
    """The face, shifted sideways by a sine; the amplitude is in interocular distances."""
    unit = interocular(face())
    wave = np.sin(2 * np.pi * frequency * SECONDS)
    points = still()
    points[..., 0] += amplitude * unit * wave[:, None]
    return points


def test_fast_motion_counts_what_is_above_five_hertz():
    # The root mean square of a sine is its amplitude over the root of two.
    wanted = 100 * 0.02 / np.sqrt(2)
    fast = fast_motion(shaken(0.02, 8.0), SECONDS)
    assert fast == pytest.approx(wanted, rel=0.05)
    slow = fast_motion(shaken(0.2, 1.0), SECONDS)
    assert slow < 0.2
    # A slow movement through the picture is no jitter, however long it is.
    drift = np.linspace(0, 0.1, COUNT)[:, None, None]
    assert fast_motion(still() + drift, SECONDS) < 0.01


def test_lost_frames_are_bridged():
    points = shaken(0.02, 8.0)
    points[10:13] = np.nan
    wanted = 100 * 0.02 / np.sqrt(2)
    assert fast_motion(points, SECONDS) == pytest.approx(wanted, rel=0.1)


def test_short_films_and_those_without_a_face_have_no_fast_motion():
    points = shaken(0.02, 8.0)
    assert fast_motion(points[:5], SECONDS[:5]) is None
    lost = np.full_like(points, np.nan)
    assert fast_motion(lost, SECONDS) is None


def test_shaking_counts_at_any_rate_and_even_motion_does_not():
    # Every other frame is off by two per cent to a side: its neighbours' middle lies two on the other one.
    unit = interocular(face())
    points = still(9)
    points[::2, :, 0] += 0.01 * unit
    points[1::2, :, 0] -= 0.01 * unit
    assert shaking(points) == pytest.approx(2.0, rel=1e-3)
    drift = np.linspace(0, 0.5, 9)[:, None, None]
    assert shaking(points + drift) == pytest.approx(2.0, rel=1e-3)
    assert shaking(still(9) + drift) < 1e-6
    # There are never three faces running.
    points[::3] = np.nan
    assert shaking(points) is None


def test_size_changes_are_relative_and_shifts_are_none():
    sizes = 1.01 ** np.arange(5)
    growing = still(5) * sizes[:, None, None]
    wanted = 100 * np.log(1.01)
    assert size_change(growing) == pytest.approx(wanted, rel=1e-6)
    assert size_change(shaken(0.1, 3.0)) < 1e-9


def test_a_result_that_follows_correlates_and_a_still_one_has_no_correlation():
    points = still()
    lower_lip = [65, 66, 67]
    opening = 0.02 * np.sin(SECONDS)
    points[:, lower_lip, 1] += opening[:, None]
    same = correlations(points, points)
    assert same["mouth_opening"] == pytest.approx(1.0)
    without = correlations(points, still())
    assert without["mouth_opening"] is None
    # Where no face is found there is nothing to compare.
    lost = correlations(points, np.full_like(points, np.nan))
    assert lost == dict.fromkeys(NAMES)


def test_all_of_a_film_at_once():
    driver, result = shaken(0.02, 8.0), shaken(0.01, 8.0)
    # In one frame of the result the face is lost.
    result[0] = np.nan
    values = film_measures(driver, result, SECONDS)
    assert values["found"] == pytest.approx(1 - 1 / COUNT)
    fast = values["fast_motion"]
    assert fast["ratio"] == pytest.approx(0.5, rel=0.1)


def test_identity_is_averaged_by_the_turn_of_the_head():
    source, driver = np.array([0.9, 0.7, 0.1]), np.array([0.2, 0.3, 0.6])
    found = identity(source, driver, np.array([2.0, -8.0, 35.0]))
    assert found["nearer_to_source"] == pytest.approx(2 / 3)
    assert found["yaw_0_to_10"] == {
        "frames": 2,
        "source": pytest.approx(0.8),
        "driver": pytest.approx(0.25),
    }
    assert found["yaw_10_to_20"] == {"frames": 0, "source": None, "driver": None}
    assert found["yaw_20_to_90"]["source"] == pytest.approx(0.1)


def test_the_table_has_a_line_for_each_number():
    text = table({"found": 0.5, "size_change": {"driver": 1.25, "result": None}})
    assert text.splitlines() == [
        "found                  0.500",
        "size change driver     1.250",
        "size change result          ",
    ]


def flow_of(pictures: list[np.ndarray], mask: np.ndarray) -> float | None:
    flow = BackgroundFlow()
    for picture in pictures:
        flow.add(picture, mask)
    return flow.mean()


def test_background_flow_sees_what_moves_behind_the_person_alone():
    y, x = np.mgrid[:128, :128]
    waves = 127 + 60 * np.sin(x / 5.0) + 60 * np.cos(y / 6.0)
    picture = waves.astype(np.uint8)
    moved = [np.roll(picture, number, axis=1) for number in range(3)]
    empty = np.zeros((128, 128), np.uint8)
    covered = np.full((128, 128), 255, np.uint8)
    assert flow_of([picture] * 3, empty) < 0.02
    # By one pixel a frame.
    assert flow_of(moved, empty) == pytest.approx(100 / 128, rel=0.15)
    assert flow_of(moved, covered) is None
