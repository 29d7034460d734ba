"""The manifest on which `ingest` depends in place of the user's folders."""

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.core.paths import INPUTS
from pipeline.ingest.manifest import source_folders, write_manifest
from tests.ingest.test_ingest import SETTINGS

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """Folders with what public data sets have, and what stops a program that opens everything."""
    folder = tmp_path / "project"
    portraits, clips, elsewhere = folder / "portraits", folder / "clips", tmp_path / "elsewhere"
    for made in (portraits / "more", clips / "numbered", elsewhere):
        made.mkdir(parents=True)
    (portraits / "a.png").write_bytes(PNG + b"a")
    (portraits / "more/b.jpg").write_bytes(PNG + b"b")
    (portraits / "readme.txt").write_text("x")
    (portraits / ".hidden.png").write_bytes(PNG)
    (portraits / "gone.png").symlink_to(folder / "nowhere.png")
    (portraits / "linked").symlink_to(elsewhere)
    (elsewhere / "c.png").write_bytes(PNG + b"c")
    (portraits / os.fsdecode(b"caf\xe9.png")).write_bytes(PNG)
    os.mkfifo(clips / "pipe.mp4")
    (clips / "film.mp4").write_bytes(b"no film")
    for number in range(2):
        (clips / f"numbered/{number:04d}.png").write_bytes(PNG + bytes([number]))
    (clips / "numbered/sub").mkdir()
    for file in tmp_path.rglob("*"):
        if file.is_file():
            # Long ago, so that a checksum may be kept.
            os.utime(file, (1e9, 1e9))
    monkeypatch.chdir(folder)
    return folder


def manifest(**changes: str) -> dict[tuple[str, str], str]:
    """The checksum or the reason of each file by its folder and name."""
    write_manifest(SETTINGS.model_copy(update=changes), INPUTS)
    lines = [json.loads(line) for line in INPUTS.read_text().splitlines()]
    return {(line["ingest"], line["file"]): line.get("sha256") or line["reason"] for line in lines}


def test_a_tilde_is_the_home_of_the_user(project, monkeypatch):
    monkeypatch.setenv("HOME", str(project.parent))
    assert manifest(portraits="~/project/portraits", clips="~/project/clips") == manifest()


def test_without_files_it_says_so(project):
    write_manifest(SETTINGS.model_copy(update={"source": "generated"}), INPUTS)
    assert INPUTS.read_text() == '{"source": "generated"}\n'


def test_every_file_is_in_it_with_a_checksum_or_a_reason(project):
    found = manifest()
    read = {name for name, value in found.items() if len(value) == 64}
    portraits = {("portraits", name) for name in ("a.png", "linked/c.png", "more/b.jpg")}
    clips = {("clips", name) for name in ("film.mp4", "numbered/0000.png", "numbered/0001.png")}
    assert read == portraits | clips
    reasons = {name: value for name, value in found.items() if name not in read}
    assert reasons == {
        ("portraits", "gone.png"): "a link to nothing",
        ("portraits", "readme.txt"): "not a picture",
        ("portraits", "caf\\xe9.png"): "its name is not UTF-8: rename it",
        ("clips", "pipe.mp4"): "a FIFO, not a file",
    }
    # Lists of clips decide what is read, too.
    (project / "lists").mkdir()
    (project / "lists/train.txt").write_text("film")
    found = manifest(split="lists")
    assert len(found["split", "train.txt"]) == 64
    assert found["split", "test.txt"] == "cannot be read: No such file or directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all files")
def test_of_a_file_that_may_not_be_read(project):
    (project / "portraits/a.png").chmod(0)
    assert manifest()["portraits", "a.png"] == "cannot be read: Permission denied"


def test_equal_files_elsewhere_make_an_equal_manifest(project, tmp_path, monkeypatch):
    manifest()
    before = INPUTS.read_bytes()
    other = tmp_path / "other"
    for name in ("portraits", "clips"):
        (project / "clips/pipe.mp4").unlink(missing_ok=True)
        shutil.copytree(project / name, other / name, symlinks=True)
    os.mkfifo(other / "clips/pipe.mp4")
    for file in other.rglob("*.png"):
        if file.exists():
            os.utime(file)
    monkeypatch.chdir(other)
    manifest()
    assert INPUTS.read_bytes() == before


def test_a_change_is_seen_wherever_it_is(project, tmp_path):
    found = [manifest()]
    changes = [
        lambda: (tmp_path / "elsewhere/c.png").write_bytes(PNG + b"d"),
        lambda: (tmp_path / "elsewhere/e.png").write_bytes(PNG),
        lambda: (project / "clips/numbered/0001.png").unlink(),
        lambda: (project / "clips/film.mp4").rename(project / "clips/movie.mp4"),
    ]
    for change in changes:
        change()
        found.append(manifest())
    assert all(one != other for one, other in itertools.pairwise(found))


def test_a_checksum_is_computed_once(project):
    path = project / "portraits/a.png"
    first = manifest()
    with open(path, "r+b") as file:
        file.write(b"X")
    # Size, time and inode are the old ones: nothing tells that there are other bytes.
    os.utime(path, (1e9, 1e9))
    assert manifest() == first
    os.utime(path, (1e9, 1e9 + 1))
    assert manifest() != first
    # What has just been written may change again within the same time.
    path.write_bytes(PNG + b"y")
    stamp = path.stat()
    second = manifest()
    path.write_bytes(PNG + b"z")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert manifest() != second


def test_an_experiment_in_a_copy_reads_the_folders_of_the_project(project, monkeypatch):
    found = manifest()
    copy = project / ".dvc/tmp/exps/tmp1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert manifest() == found
    assert source_folders(SETTINGS) == (project / "portraits", project / "clips")
