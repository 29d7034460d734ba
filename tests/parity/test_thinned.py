"""Thinned fixtures: which values are kept, what they tell of the whole, and thinned ones that are no good."""

import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.parity.file import (
    KEPT,
    Stored,
    kept_places,
    read_fixture,
    relative_error,
    thinned,
    write_fixture,
)
from pipeline.parity.numbers import NumberRule
from pipeline.parity.psi_cases import NECK_GRIDS
from tests.parity.verdicts import verdicts, with_verdict, write_rule_check
from tests.published import PARITY, thin


def test_kept_places() -> None:
    picture = 3 * 512 * 512
    counts = {KEPT + 1: KEPT, picture: KEPT, 10**15: 7, 100: 100}
    for size, count in counts.items():
        places = kept_places(size, count)
        assert places[0] >= 0
        assert places[-1] < size
        assert (np.diff(places) > 0).all()
        # There is about one in each stretch.
        stretch = places * (count / size)
        middle = np.arange(count) + 0.5
        offset = np.abs(stretch - middle)
        assert offset.max() < 1.5
    # The fixtures mean these places, so that they never change.
    places = kept_places(picture, KEPT)
    first = places[:6].tolist()
    assert first == [95, 289, 440, 605, 891, 1102]
    # No column is preferred: 4096 places, by chance within 5 deviations.
    for period in (8, 512):
        columns = np.bincount(places % period, minlength=period)
        mean = KEPT / period
        offset = np.abs(columns - mean)
        assert offset.max() < 5 * math.sqrt(mean)


def test_a_thinned_array_tells_the_error_of_the_whole() -> None:
    rule, shape = NumberRule(), (32, 128, 128)
    found = rule.unit("found", shape)
    noise = rule.unit("noise", shape)
    whole = found + np.float32(1e-3) * noise
    stored = thinned(whole)
    of_whole = relative_error(found, whole)
    assert stored.error(found) == pytest.approx(of_whole, rel=0.05)
    assert stored.error(whole) == 0
    # What is small stays whole.
    small = whole[0, 0]
    assert thinned(small).thinned_from is None
    assert thinned(small).values is small


def test_a_thinned_fixture_catches_a_wrong_value(tmp_path: Path) -> None:
    arrays = read_fixture(PARITY / "preprocess.npz")
    whole = (3, 224, 224)
    warped = arrays["warp224"]
    assert warped.shape == whole
    assert warped.values.shape == (KEPT,)
    values = warped.values.copy()
    values[KEPT // 2] += 0.5
    # All values of the crop are there, but each one place too early.
    moved = np.roll(arrays["crop224"].values, -1)
    arrays["warp224"] = Stored(values, whole)
    arrays["crop224"] = Stored(moved, whole)
    path = tmp_path / "preprocess.npz"
    write_fixture(path, arrays)
    found = verdicts(path)
    assert with_verdict(found, "fail") == {"preprocess.warp224", "preprocess.crop224"}


def test_thinned_arrays_that_are_no_good(tmp_path: Path) -> None:
    stored = thinned(NumberRule().unit("test", (16,)), 5)
    good = {"unit_test": stored.values, "unit_test.shape": np.array([16])}

    def verdicts_of(**change: np.ndarray) -> dict[str, str]:
        path = write_rule_check(tmp_path, **good | change)
        return verdicts(path)

    assert set(verdicts_of().values()) == {"pass", "input"}
    other = {"unit_test.shape": np.array([4, 4])}
    assert verdicts_of(**other)["rule_check.unit_test"] == "fail"
    changes = {
        "no shape": {"unit_test.shape": np.array([16.0])},
        "neither": {"unit_test.shape": np.array([-4, -4])},
        "too many values": {"unit_test.shape": np.array([4])},
        "no values": {"unit_test": stored.values[:0]},
        "not in a row": {"unit_test": stored.values[None]},
        "larger than numbers are": {"unit_test.shape": np.array([2**62, 2**62, 0])},
        "of nothing": {"unit_text.shape": np.array([16])},
    }
    for why, change in changes.items():
        assert verdicts_of(**change) == {"rule_check": "fail"}, why
    # An input has to be whole.
    few = np.zeros(5, np.float32)
    grids = {name: Stored(few, shape) for name, shape in NECK_GRIDS.items()}
    path = tmp_path / "psi_v2_posed.npz"
    write_fixture(path, grids)
    assert verdicts(path) == {"psi_v2_posed": "fail"}


def test_full_fixtures_are_thinned_to_equal_bytes(tmp_path: Path) -> None:
    rule = NumberRule()
    full = tmp_path / "full"
    once = tmp_path / "once"
    twice = tmp_path / "twice"
    grid = rule.unit("a", (3, 24, 24, 24))
    few = rule.unit("c", (KEPT,))
    picture = rule.unit("b", (2, 80, 70))
    picture = picture.astype(np.float16)
    full.mkdir()
    np.savez(full / "a.npz", grid24_offset=grid, picture=picture, few=few)
    thin.main(full, once)
    thin.main(once, twice)
    first = once / "a.npz"
    second = twice / "a.npz"
    assert first.read_bytes() == second.read_bytes()
    found = read_fixture(first)
    own = found["picture"]
    assert own.shape == picture.shape
    assert own.values.shape == (KEPT,)
    assert own.values.dtype == np.float16
    assert own.error(picture) == 0
    assert np.array_equal(found["grid24_offset"].values, grid)
    assert np.array_equal(found["few"].values, few)
