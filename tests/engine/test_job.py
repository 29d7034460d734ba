"""Finished units of earlier runs: taken as long as nothing that they depend on has changed."""

import dataclasses
from functools import partial
from itertools import chain
from pathlib import Path

import pytest

from pipeline.engine.job import Job
from pipeline.engine.scratch import finished_units, publish, scratch_folder, units_folder
from pipeline.engine.work_unit import WorkUnit, buckets
from tests.engine.test_run import Worker, machine
from tests.support.folders import checksums


def unit(name: str) -> WorkUnit:
    items = [f"{name}-0", f"{name}-1", f"{name}-2"]
    return WorkUnit(f"part-{name}", items, inputs=name, code="code")


UNITS = list(map(unit, "abcd"))


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def run(units: list[WorkUnit], calls: Path, out: Path | None, **trouble) -> list[str]:
    """Do the units and publish them; the names of those that were begun."""
    job = Job("test", units, partial(Worker, calls, **trouble), {"items": 1})
    scratch = scratch_folder(job.label, job.mark)
    job.run(scratch, machine(0))
    if out:
        publish(scratch, out)
    begun = calls.iterdir() if calls.exists() else []
    return sorted({path.name[: len("part-a")] for path in begun})


def inodes_in(folder: Path) -> dict[str, int]:
    found = {}
    for path in folder.iterdir():
        found[path.name] = path.stat().st_ino
    return found


def test_only_what_has_changed_is_done(tmp_path):
    out = tmp_path / "out"
    assert len(run(UNITS, tmp_path / "1", out)) == 4
    before = checksums(out)
    inodes = inodes_in(out)
    assert run(UNITS, tmp_path / "2", out) == []
    assert inodes_in(out) == inodes
    # Other inputs of one, another name for one, and a new one; one has gone.
    a, b, c, _ = UNITS
    changed = [
        a,
        dataclasses.replace(b, inputs="other"),
        dataclasses.replace(c, name="part-f"),
        unit("e"),
    ]
    assert run(changed, tmp_path / "3", out) == ["part-b", "part-e", "part-f"]
    kept = out / "part-a.tar"
    assert kept.stat().st_ino == inodes["part-a.tar"]
    names = sorted(path.stem for path in out.glob("*.tar"))
    assert names == ["part-a", "part-b", "part-e", "part-f"]
    # What the last run did not need is gone, and another code makes all anew.
    assert run(UNITS, tmp_path / "4", out) == ["part-b", "part-c", "part-d"]
    assert checksums(out) == before
    other = [dataclasses.replace(unit, code="other") for unit in UNITS]
    assert len(run(other, tmp_path / "5", out)) == 4
    [kept] = finished_units()
    assert kept.path == units_folder("test") and kept.bytes > 0


def test_a_run_that_was_stopped_leaves_its_units_to_one_of_other_inputs(tmp_path):
    run(UNITS[:3], tmp_path / "1", None)
    assert run(UNITS, tmp_path / "2", tmp_path / "out") == ["part-d"]


def test_what_is_damaged_or_was_given_up_is_done_again(tmp_path):
    out = tmp_path / "out"
    run(UNITS, tmp_path / "1", out, bad=("b-1",))
    shard = units_folder("test") / "part-c.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    # Written in place, as damage is: what is published has it as well.
    shard.write_bytes(content)
    (units_folder("test") / "part-d.tar").unlink()
    assert run(UNITS, tmp_path / "2", out) == ["part-b", "part-c", "part-d"]
    whole = checksums(out)
    assert run(UNITS, tmp_path / "3", out) == [] and checksums(out) == whole


def test_a_unit_must_say_what_it_depends_on():
    with pytest.raises(ValueError, match="does not say what it depends on"):
        Job("test", [WorkUnit("part-a", [1], "inputs")], Worker, {"items": 1})


def test_buckets_do_not_shift():
    names = [f"{number}.png" for number in range(3000)]
    found = buckets(names, 100)
    inside = list(chain.from_iterable(found.values()))
    assert sorted(inside) == sorted(names)
    sizes = list(map(len, found.values()))
    assert max(sizes) <= 100
    assert sum(sizes) / len(sizes) > 50
    assert buckets(reversed(names), 100) == found
    for name in ("new.png", "a/b.png"):
        more = buckets([*names, name], 100)
        numbers = more.keys() | found.keys()
        changed = [number for number in numbers if more.get(number) != found.get(number)]
        # Its own; or it splits, and then there are two in place of one.
        assert len(changed) in (1, 3)
    assert buckets(["x"], 100) == {1: ["x"]}
    assert buckets([], 100) == {}
