"""Arrays that are made once of tables, for all processes of a stage."""

import numpy as np
import pytest

from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes
from pipeline.engine.mapped import mapped_folder


def test_it_is_made_once_and_anew_for_another_input(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    table = write_bytes(tmp_path / "table", b"one")
    made = []

    def build(folder):
        made.append(folder)
        np.save(folder / "numbers.npy", np.arange(len(made)))

    code = "pipeline/engine/mapped.py"
    first = mapped_folder("numbers", build, code, table)
    assert mapped_folder("numbers", build, code, table) == first
    assert len(made) == 1
    write_bytes(table, b"two")
    second = mapped_folder("numbers", build, code, table)
    assert len(np.load(second / "numbers.npy", mmap_mode="r")) == 2
    # Gigabytes of an older table would otherwise stay for ever.
    assert not first.exists()


def test_what_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))

    def build(folder):
        raise UserError("no label is usable")

    for _ in range(2):
        with pytest.raises(UserError, match="no label is usable"):
            mapped_folder("labels", build, "pipeline/engine/mapped.py", "input")
