"""Every file of a folder is read or passed over by name with a reason, whatever lies there."""

import os

import pytest
from PIL import Image

from pipeline.ingest.files import PICTURE, VIDEO, find_files, kind_of
from tests.ingest.films import numbered, write_film


def test_contents_decide(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "picture.dat", format="PNG")
    Image.new("RGB", (20, 20)).save(tmp_path / "photo.mp4", format="JPEG")
    write_film(tmp_path / "film.mp4", numbered(3)).rename(tmp_path / "film.jpg")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "broken.png").write_text("no picture")
    pictures, films = find_files(tmp_path, PICTURE), find_files(tmp_path, VIDEO)
    assert pictures.files == ["broken.png", "photo.mp4", "picture.dat"]
    assert pictures.passed_over == {"film.jpg": "a video, not a picture", "notes.txt": "not a picture"}
    assert films.files == ["film.jpg"]
    assert films.passed_over["photo.mp4"] == "a picture, not a video"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif", "avif", "jp2", "ppm"])
def test_signatures_of_pictures(tmp_path, suffix):
    Image.new("RGB", (30, 20), (9, 90, 200)).save(tmp_path / f"x.{suffix}")
    assert kind_of((tmp_path / f"x.{suffix}").read_bytes()[:1024]) == PICTURE


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("x.mp4", "libx264", None),
        ("x.mov", "libx264", None),
        ("x.mkv", "libx264", None),
        ("x.webm", "libvpx-vp9", None),
        ("x.avi", "mpeg4", None),
        ("x.ts", "libx264", "mpegts"),
        ("x.m2ts", "libx264", "mpegts"),
        ("x.mpg", "mpeg2video", "mpeg"),
        ("x.wmv", "wmv2", "asf"),
        ("x.flv", "flv", None),
        ("x.3gp", "libx264", "3gp"),
    ],
)
def test_signatures_of_videos(tmp_path, name, codec, container):
    mux = {"mpegts_m2ts_mode": "1"} if name == "x.m2ts" else None
    path = write_film(tmp_path / name, numbered(5), codec, container=container, mux=mux)
    assert kind_of(path.read_bytes()[:1024]) == VIDEO


def test_what_lies_in_folders(tmp_path):
    for name in ("b/2.PNG", "a.png", ".hidden.png", ".git/x.png", "b/empty.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"" if "empty" in name else b"x")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "other").symlink_to(tmp_path / "b")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    found = find_files(tmp_path, PICTURE)
    assert found.files == ["a.png", "b/2.PNG", "b/empty.jpg"]
    assert found.passed_over == {
        "gone.png": "a link to nothing",
        "loop": "a link to a folder that is read already: .",
        "other": "a link to a folder that is read already: b",
        "pipe.png": "a FIFO, not a file",
    }
    assert find_files(tmp_path / "absent", VIDEO).files == []


def test_a_linked_folder_is_read(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.png").write_bytes(b"x")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "far")
    assert find_files(tmp_path / "here", PICTURE).files == ["link/a.png"]


def test_names_that_are_not_utf8(tmp_path):
    os.mkdir(os.fsencode(tmp_path) + b"/f\xff")
    for name in (b"/\xfc.png", b"/f\xff/a.png"):
        with open(os.fsencode(tmp_path) + name, "wb") as file:
            file.write(b"x")
    found = find_files(tmp_path, PICTURE)
    assert found.files == []
    assert set(found.passed_over) == {"\\xfc.png", "f\\xff"}
    assert set(found.passed_over.values()) == {"its name is not UTF-8: rename it"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(tmp_path):
    (tmp_path / "shut").mkdir(mode=0)
    (tmp_path / "x.dat").write_bytes(b"x")
    (tmp_path / "x.dat").chmod(0)
    found = find_files(tmp_path, PICTURE)
    assert found.passed_over == {
        "shut": "a folder that cannot be read: Permission denied",
        "x.dat": "cannot be read: Permission denied",
    }
