"""Sealed files: what is read is what was written, whatever happened to the writer or to the files."""

import os
import subprocess
import sys

import pytest

from pipeline.core.errors import UserError
from pipeline.engine.code_mark import SOURCE
from pipeline.store.sealed import (
    check_sealed,
    read_facts,
    read_sealed,
    recover,
    remove_sealed,
    seal_path,
    sealing,
    write_sealed,
)


def test_what_was_written_is_read(tmp_path):
    facts = write_sealed(tmp_path / "a/x.safetensors", b"data", {"steps": 3, "network": "psi"})
    assert read_sealed(tmp_path / "a/x.safetensors") == (b"data", facts)
    assert facts.keys() == {"steps", "network", "sha256"}
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["x.json", "x.safetensors"]
    with sealing(tmp_path / "x.tar", compact=True) as draft:
        draft.file.write(b"da")
        draft.file.write(b"ta")
        draft.facts["z"] = draft.facts["a"] = 1
    assert check_sealed(tmp_path / "x.tar")["sha256"] == facts["sha256"]
    assert seal_path(tmp_path / "x.tar").read_text().startswith('{"z":1,"a":1,"sha256":"')
    # Twice, as the clean-up of a run that was killed while it cleaned up.
    remove_sealed(tmp_path / "x.tar")
    remove_sealed(tmp_path / "x.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_writer_that_fails_leaves_the_earlier_pair(tmp_path):
    path = tmp_path / "x.tar"
    facts = write_sealed(path, b"earlier", {})
    with pytest.raises(RuntimeError), sealing(path) as draft:
        draft.file.write(b"half of it")
        raise RuntimeError
    # Both are facts that JSON cannot hold, and the data is on the disk before that is noticed.
    for value in (float("nan"), {1, 2}):
        with pytest.raises((TypeError, ValueError)):
            write_sealed(path, b"later", {"value": value})
    assert read_sealed(path) == (b"earlier", facts) and len(list(tmp_path.iterdir())) == 2


def test_damage_is_said_in_words(tmp_path):
    path = tmp_path / "x.tar"
    with pytest.raises(UserError, match=r"x\.tar has no x\.tar\.json beside it\. Run again"):
        read_sealed(path, "Run again.")
    write_sealed(path, b"data", {})
    path.write_bytes(b"date")
    for read in (check_sealed, read_sealed):
        with pytest.raises(
            UserError, match=r"x\.tar is damaged: its checksum .* in x\.tar\.json\. .*dvc repro"
        ):
            read(path)
    path.unlink()
    for read in (check_sealed, read_sealed):
        with pytest.raises(UserError, match=r"x\.tar is missing"):
            read(path)
    # Empty and cut files of a full disk, and JSON of another tool.
    for text in ("", "{", "[]", '{"sha256": 1}', '{"steps": 1}'):
        seal_path(path).write_text(text)
        with pytest.raises(UserError, match=r"x\.tar\.json is damaged"):
            read_facts(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_sealed(tmp_path / "file/x.tar", b"", {})


@pytest.mark.process
@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_writer_that_is_killed_between_its_renames_loses_nothing(tmp_path, renames):
    path = tmp_path / "x.safetensors"
    write_sealed(path, b"earlier", {"step": 1})
    # The process kills itself at the rename, as no signal from outside would hit so short a moment.
    code = f"""
import os, signal
from pipeline.store.sealed import write_sealed
left, rename = {renames}, os.replace
def replace(*paths):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    rename(*paths)
os.replace = replace
write_sealed({str(path)!r}, b"later", {{"step": 2}})
"""
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=100, check=False)
    # The JSON is new and the data old: a reader must refuse the pair until it is mended.
    if renames == 1:
        with pytest.raises(UserError, match="checksum"):
            read_sealed(path)
    recover(path)
    data, facts = read_sealed(path)
    assert (data, facts["step"]) == ((b"later", 2) if renames else (b"earlier", 1))
