"""What was found in a driver is kept for the next film, and changes nothing in it."""

import os
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.avatar.drivers import drop_oldest, kept_folder
from pipeline.avatar.studio import Studio
from pipeline.core.files import sha256
from pipeline.engine.scratch import finished_units
from tests.avatar.inputs import film_of, params, save_networks, weights_in


@pytest.fixture
def studio(work) -> Studio:
    return Studio(params(), weights_in(work))


def kept_files() -> list[Path]:
    return sorted(kept_folder().glob("*"))


def test_a_known_driver_is_what_was_found_and_needs_no_detector(work, studio):
    driver, motion = studio.driver(work / "first.mp4")
    again = Studio(params(), weights_in(work))
    known, known_motion = again.driver(work / "first.mp4")
    assert "faces" not in vars(again.front)
    assert torch.equal(known_motion, motion)
    for field in fields(driver):
        found, wanted = getattr(known, field.name), getattr(driver, field.name)
        if isinstance(wanted, np.ndarray):
            assert found.dtype == wanted.dtype
            assert np.array_equal(found, wanted)
    assert known.lost == driver.lost
    assert np.array_equal(next(known.faces(64)), next(driver.faces(64)))


def test_a_film_is_the_same_with_and_without_what_is_known(work):
    film_of(work, "a.mp4")
    [kept] = kept_files()
    film_of(work, "b.mp4")
    # A copy of another name holds the same bytes.
    shutil.copy(work / "first.mp4", "copy.mp4")
    film_of(work, "c.mp4", driver="copy.mp4")
    assert kept_files() == [kept]
    assert len({sha256(path) for path in ("a.mp4", "b.mp4", "c.mp4")}) == 1
    # `psi4d clean --units` lists the folder.
    assert kept_folder() in [found.path.absolute() for found in finished_units()]


def test_what_decides_names_the_file(work, studio):
    usual = studio.drivers.file(work / "first.mp4")
    assert usual != studio.drivers.file(work / "second.mp4")
    studio.front.smooth = 0.5
    assert usual != studio.drivers.file(work / "first.mp4")
    other = Studio(params(), save_networks(Path("other"), seed=2))
    assert studio.animator.motion_sha256 == other.animator.motion_sha256
    assert usual == other.drivers.file(work / "first.mp4")
    own = params()
    strict = own.ingest.model_copy(update={"detection_score": 0.9})
    other = Studio(own.model_copy(update={"ingest": strict}), weights_in(work))
    assert usual != other.drivers.file(work / "first.mp4")


def test_a_damaged_file_is_made_again(work):
    film_of(work, "a.mp4")
    [kept] = kept_files()
    whole = kept.read_bytes()
    for damaged in (b"", whole[:-100], whole[:-1] + bytes([whole[-1] ^ 1])):
        kept.write_bytes(damaged)
        film_of(work, "b.mp4")
        assert kept.read_bytes() == whole
        assert sha256("a.mp4") == sha256("b.mp4")


def test_a_film_is_made_where_nothing_can_be_kept(work):
    place = kept_folder()
    place.parent.mkdir(parents=True)
    place.touch()
    assert film_of(work).path == Path("a.mp4")


def test_the_longest_unused_go_first(tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in "abcd"]
    for age, file in enumerate(files):
        file.write_bytes(bytes(10))
        os.utime(file, (100 - age, 100 - age))
    drop_oldest(tmp_path, 25)
    assert sorted(tmp_path.iterdir()) == files[:2]
    drop_oldest(tmp_path / "absent", 0)
