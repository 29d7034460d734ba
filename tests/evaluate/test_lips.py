"""What SyncNet is given: clips without gaps, boxes of faces, sound."""

from pathlib import Path

import numpy as np
import pytest

from model.instruments.syncnet import FPS, RATE
from pipeline.evaluate.lips import face_box, is_whole
from pipeline.evaluate.sound import read_sound
from tests.avatar.inputs import write_clip

SECONDS = 1.6
FRAMES = round(SECONDS * FPS)


def test_whole_clips_have_no_gap():
    steady = np.arange(10) / 25
    assert is_whole(steady)
    assert is_whole(np.arange(10) / 30)
    assert not is_whole(np.arange(10) / 12.5)
    assert not is_whole(np.delete(steady, 4))
    assert not is_whole(steady[:1])


def test_a_detectors_box_begins_above_the_brows():
    points = np.array([[10.0, 40.0], [50.0, 40.0], [30.0, 70.0]])
    assert face_box(points).tolist() == [10.0, 30.0, 50.0, 70.0]


def clip_with_sound(path: Path, sound: str = "aac") -> Path:
    pictures = [np.full((64, 64, 3), 6 * number, np.uint8) for number in range(FRAMES)]
    return write_clip(path, pictures, [number / FPS for number in range(FRAMES)], sound)


def test_the_sound_of_a_film(tmp_path):
    heard = read_sound(clip_with_sound(tmp_path / "a.mp4"))
    assert heard.dtype == np.int16
    assert len(heard) == pytest.approx(SECONDS * RATE, rel=0.1)
    assert np.abs(heard).max() > 1000
    assert read_sound(clip_with_sound(tmp_path / "b.mp4", "")) is None
    assert read_sound(tmp_path / "none.mp4") is None
    (tmp_path / "c.mp4").write_bytes(b"no film")
    assert read_sound(tmp_path / "c.mp4") is None
