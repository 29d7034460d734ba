"""A folder of numbered pictures is a clip."""

import os

import numpy as np
import pytest
from PIL import Image

from pipeline.ingest.files import Rejected, find_clips
from pipeline.ingest.sequence import PictureSequence, open_clip
from pipeline.ingest.video import Video
from tests.ingest.films import number_of, numbered, picture_of, write_film


def write_pictures(folder, numbers, name="{:08d}.png"):
    folder.mkdir(parents=True)
    for number in numbers:
        Image.fromarray(picture_of(number)).save(folder / name.format(number))
    return folder


def test_order_times_and_gaps(tmp_path):
    numbers = [8, 9, 10, 100, 101]
    folder = write_pictures(tmp_path / "clip", numbers, "frame{}.png")
    clip = open_clip(folder, 25)
    assert isinstance(clip, PictureSequence)
    assert shown_by(clip) == numbers
    # A missing number is a missing frame: time goes on.
    seconds = [frame.seconds for frame in clip.frames()]
    from_first = np.array(numbers) - numbers[0]
    np.testing.assert_allclose(seconds, from_first / 25)
    np.testing.assert_array_equal(clip.scan().seconds_N, seconds)
    assert shown_by(clip, [1, 4]) == [9, 101]


def shown_by(clip, indices=None):
    """The numbers that the frames of a clip carry."""
    return [number_of(frame.picture) for frame in clip.frames(indices)]


def test_damaged_pictures_have_no_index(tmp_path):
    folder = write_pictures(tmp_path / "clip", range(6))
    (folder / "00000002.png").write_bytes(b"x")
    clip = open_clip(folder, 25)
    assert clip.scan().damaged == 1
    # Indices count what can be read.
    indices = [frame.index for frame in clip.frames([1, 2])]
    assert indices == [1, 2]
    assert shown_by(clip, [1, 2]) == [1, 3]


def test_two_pictures_of_one_number(tmp_path):
    folder = write_pictures(tmp_path / "clip", range(3))
    Image.fromarray(picture_of(1)).save(folder / "1.jpg")
    with pytest.raises(Rejected, match=r"two pictures have one number: 00000001\.png and 1\.jpg"):
        PictureSequence(folder, 25)


def test_clips_of_a_folder(tmp_path):
    folder = write_pictures(tmp_path / "b/Clip+AbC+P0+C0+F0-2", range(3))
    (folder / "notes.txt").write_text("x")
    write_film(tmp_path / "a.mp4", numbered(3))
    # A single picture is no clip, even if its name ends with a number.
    Image.new("RGB", (20, 20)).save(tmp_path / "cover1.png")
    listing = find_clips(tmp_path)
    assert listing.files == ["a.mp4", "b/Clip+AbC+P0+C0+F0-2"]
    assert listing.passed_over == {
        "b/Clip+AbC+P0+C0+F0-2/notes.txt": "not a video",
        "cover1.png": "a picture, not a video",
    }
    assert isinstance(open_clip(tmp_path / "a.mp4", 25), Video)


def test_other_files_beside_the_pictures(tmp_path):
    folder = write_pictures(tmp_path / "clip", range(3))
    (folder / "landmarks1.txt").write_text("x")
    os.mkfifo(folder / "00000007.png")
    clip = open_clip(folder, 25)
    assert shown_by(clip) == [0, 1, 2]
