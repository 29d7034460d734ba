"""Long drivers in sections: the same where one suffices, and no jumps where there are several."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pipeline.avatar.sections import OVERLAP, SECTION, in_sections, with_rotations


@pytest.mark.parametrize("count", [1, SECTION])
def test_one_section_is_left_as_it_is(count):
    values = np.random.default_rng(0).normal(size=(count, 3))
    assert in_sections(count, lambda rows: values[rows]) is not None
    assert np.array_equal(in_sections(count, lambda rows: values[rows]), values)


@pytest.mark.parametrize("count", [SECTION + 1, SECTION + OVERLAP, 2 * SECTION, 3 * SECTION + 7])
def test_sections_cover_all_frames_and_are_never_longer_than_allowed(count):
    values = np.random.default_rng(0).normal(size=(count, 3))
    seen: list[slice] = []

    def work(rows: slice) -> np.ndarray:
        seen.append(rows)
        return values[rows]

    assert np.allclose(in_sections(count, work), values)
    assert seen[-1].stop == count and max(rows.stop - rows.start for rows in seen) <= SECTION
    assert all(before.stop - after.start >= OVERLAP for before, after in pairwise(seen))


def test_sections_that_differ_fade_into_each_other():
    numbers = iter(range(10))
    found = in_sections(3 * SECTION, lambda rows: np.full((rows.stop - rows.start, 1), float(next(numbers))))
    assert np.abs(np.diff(found[:, 0])).max() < 2 / OVERLAP


def test_rotations_are_rotations_again():
    turns = Rotation.from_rotvec([[0.0, 0.1, 0.0], [0.0, 0.14, 0.0]]).as_matrix()
    label = np.zeros((1, 437))
    camera = np.eye(4)
    camera[:3, :3] = turns.mean(axis=0)
    label[0, :16] = camera.ravel()
    found = with_rotations(label)[0, :16].reshape(4, 4)[:3, :3]
    assert np.allclose(found, Rotation.from_rotvec([0.0, 0.12, 0.0]).as_matrix(), atol=1e-6)
