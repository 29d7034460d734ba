"""An evaluation that is stopped anywhere goes on, and ends with the same numbers."""

import json

import numpy as np
import pytest
import torch

from pipeline.clips.held_out import CachedClips
from pipeline.core.files import write_bytes
from pipeline.evaluate import protocol
from pipeline.evaluate.kept import Kept
from pipeline.evaluate.report import rounded
from pipeline.evaluate.sums import Table, Together
from pipeline.status import DONE, statuses
from tests.evaluate import world as a_world


class Stopped(Exception):
    """In the place of a kill: nothing is done after it."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return a_world.build(tmp_path_factory.mktemp("world"))


@pytest.fixture
def reads(monkeypatch):
    """How often a frame is read; a number under `stop` is one at which the run ends."""
    counted = {"frames": 0, "stop": 0}
    read = CachedClips.read

    def counting(self, key):
        counted["frames"] += 1
        if counted["frames"] == counted["stop"]:
            raise Stopped
        return read(self, key)

    monkeypatch.setattr(CachedClips, "read", counting)
    # Of a pair each, so that there are pieces to stop between.
    monkeypatch.setattr(protocol, "AT_ONCE", 1)
    return counted


def everything(evaluation) -> str:
    """All that is measured, in its order."""
    frames = {
        method: {name: list(values) for name, values in numbers.items()}
        for method, numbers in evaluation.per_pair.items()
    }
    return json.dumps([rounded(evaluation.scores), frames, list(evaluation.turned)])


@pytest.mark.slow
def test_a_stopped_evaluation_goes_on(world, reads, tmp_path):
    whole = everything(a_world.run(world.folder, world.params, tmp_path / "whole"))
    needed = reads["frames"]
    for number, share in enumerate((0.3, 0.8)):
        root = tmp_path / str(number)
        stop = int(needed * share)
        reads.update(frames=0, stop=stop)
        with pytest.raises(Stopped):
            a_world.run(world.folder, world.params, root)
        reads.update(frames=0, stop=0)
        assert everything(a_world.run(world.folder, world.params, root)) == whole
        # Read again is what belongs to the piece that it was at and to the one behind: three frames each.
        assert reads["frames"] <= needed - stop + 8


def test_of_an_evaluation_status_tells_the_part(world, reads, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    reads["stop"] = 3
    with pytest.raises(Stopped):
        a_world.run(world.folder, world.params, tmp_path)
    [found] = statuses()
    assert found.progress.startswith("real: 1 of ")
    assert found.state != DONE
    reads["stop"] = 0
    a_world.run(world.folder, world.params, tmp_path).kept.forget()
    [found] = statuses()
    assert (found.state, found.progress) == (DONE, "all is measured")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_is_damaged_begins_anew(tmp_path, capsys):
    """As does what another evaluation kept, which lies in another folder."""

    def add_up(folder) -> tuple[list[int], np.ndarray]:
        table, seen = Table(), []
        for piece, doubled in Kept(folder).left(
            "part", [[1], [2, 3]], table, lambda piece: [2 * x for x in piece]
        ):
            seen.append(len(piece))
            table.add({"b": np.array(doubled), "a": np.array(piece, float)})
        assert list(table.columns) == ["b", "a"]
        return seen, table.columns["b"]

    first = add_up(tmp_path)
    assert first[0] == [1, 2]
    seen, kept = add_up(tmp_path)
    assert seen == []
    assert np.array_equal(kept, [2, 4, 6])
    write_bytes(tmp_path / "part.safetensors", b"half of i")
    assert add_up(tmp_path)[0] == [1, 2]
    assert "part.safetensors is damaged" in capsys.readouterr().err
    assert add_up(tmp_path / "other")[0] == [1, 2]


def test_sums_of_one_name_do_not_mix():
    one, two, again, other = Table(), Table(), Table(), Table()
    one.add({"x": np.arange(3)})
    two.add({"x": np.arange(2.0)})
    kept = Together(a=one, ab=two).tensors()
    Together(a=again, ab=other).restore({name: torch.clone(tensor) for name, tensor in kept.items()})
    assert np.array_equal(again.columns["x"], [0, 1, 2])
    assert np.array_equal(other.columns["x"], [0.0, 1.0])
