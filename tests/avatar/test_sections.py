"""Long drivers in sections: the same where one suffices, and no jumps where there are several."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pipeline.avatar.sections import OVERLAP, SECTION, in_sections, with_rotations


def numbers(count: int) -> np.ndarray:
    """Any values of `count` frames."""
    random = np.random.default_rng(0)
    return random.normal(size=(count, 3))


@pytest.mark.parametrize("count", [1, SECTION])
def test_one_section_is_left_as_it_is(count):
    values = numbers(count)
    found = in_sections(count, lambda rows: values[rows])
    assert np.array_equal(found, values)


@pytest.mark.parametrize("count", [SECTION + 1, SECTION + OVERLAP, 2 * SECTION, 3 * SECTION + 7])
def test_sections_cover_all_frames_and_are_never_longer_than_allowed(count):
    values = numbers(count)
    seen: list[slice] = []

    def work(rows: slice) -> np.ndarray:
        seen.append(rows)
        return values[rows]

    found = in_sections(count, work)
    assert np.allclose(found, values)
    assert seen[-1].stop == count
    lengths = [rows.stop - rows.start for rows in seen]
    assert max(lengths) <= SECTION
    for before, after in pairwise(seen):
        assert before.stop - after.start >= OVERLAP


def test_sections_that_differ_fade_into_each_other():
    levels = iter(range(10))

    # Each section says another number for all of its frames.
    def work(rows: slice) -> np.ndarray:
        length = rows.stop - rows.start
        level = float(next(levels))
        return np.full((length, 1), level)

    found = in_sections(3 * SECTION, work)
    steps = np.diff(found[:, 0])
    assert np.abs(steps).max() < 2 / OVERLAP


def test_rotations_are_rotations_again():
    vectors = [[0.0, 0.1, 0.0], [0.0, 0.14, 0.0]]
    turns = Rotation.from_rotvec(vectors).as_matrix()
    # The mean of two rotations is none.
    camera = np.eye(4)
    camera[:3, :3] = turns.mean(axis=0)
    label = np.zeros((1, 437))
    label[0, :16] = camera.ravel()
    mended = with_rotations(label)
    found = mended[0, :16].reshape(4, 4)[:3, :3]
    between = Rotation.from_rotvec([0.0, 0.12, 0.0])
    assert np.allclose(found, between.as_matrix(), atol=1e-6)
