"""The engine: the same bytes for any number of workers, and nothing done twice after a stop."""

import json
import multiprocessing
import os
import signal
import socket
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.core.costs import Costs
from pipeline.core.errors import UserError
from pipeline.core.files import sha256
from pipeline.core.seeds import rng
from pipeline.engine import ray_workers
from pipeline.engine.code_mark import SOURCE, closure
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.run import run_units
from pipeline.engine.scratch import publish
from pipeline.engine.work_unit import (
    Done,
    Reject,
    WorkUnit,
    record_path,
    table_path,
    tables_of,
    units_of,
)
from pipeline.store.shards import ShardReader, encode_npy
from pipeline.store.tables import Rows

UNITS = units_of("part", [f"item-{index:03d}" for index in range(18)], 4)


def machine(workers: int) -> SimpleNamespace:
    return SimpleNamespace(workers=workers, device="cpu", ray_address="", object_store_mb=100)


class Worker:
    """A worker that writes down that it was called, and misbehaves for chosen items.

    It puts into the shard, for each item, its place among those done together and a matrix product. It raises
    for the `bad` items and dies of the `deadly` ones, once or always.
    """

    def __init__(
        self,
        calls: Path,
        bad: tuple[str, ...] = (),
        deadly: tuple[str, ...] = (),
        always: bool = False,
    ):
        self.calls, self.bad, self.deadly, self.always = calls, bad, deadly, always
        calls.mkdir(exist_ok=True)

    def __call__(self, unit: WorkUnit):
        # More threads would add up products in another order.
        assert torch.get_num_threads() == 1
        number = len(list(self.calls.iterdir()))
        (self.calls / f"{unit.name}-{number}-{os.getpid()}").touch()
        record = {"items": 0}
        return self.samples(unit, record), record

    def samples(self, unit, record):
        for place, item in enumerate(unit.items):
            if item in self.bad:
                raise RuntimeError("nobody expected this")
            # The file outlives the process, so that the next one knows of the death.
            died = self.calls / "died"
            if item in self.deadly and (self.always or not died.exists()):
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            record["items"] += 1
            numbers = rng(0, item).normal(size=(300, 300))
            matrix = torch.from_numpy(numbers.astype(np.float32))
            product = matrix @ matrix
            fields = {
                "place.npy": encode_npy(np.array(place)),
                "product.npy": encode_npy(product.numpy()),
            }
            yield item, fields


def run(units, work, scratch: Path, counts=None, item_bytes: float = 0.0, workers: int = 0) -> list[Done]:
    return run_units(units, work, scratch, machine(workers), "test", counts or {"items": 1}, item_bytes)


def begun(calls: Path) -> list[str]:
    """The units that a Worker was called with."""
    return sorted(path.name[:11] for path in calls.iterdir())


def shards(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.glob("*.tar"))}


def run_apart(*arguments) -> int:
    """`run_units` in a process of its own, which may die; its exit code."""
    # A fork, as a fresh interpreter would import torch for seconds each time.
    process = multiprocessing.get_context("fork").Process(target=run, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.iterdir())}


def test_a_short_run_needs_no_ray(tmp_path, monkeypatch):
    """How long it will take, it knows from the units that are done."""
    done = run(UNITS, partial(Worker, tmp_path / "calls"), tmp_path / "scratch")
    record = record_path(UNITS[1], tmp_path / "scratch")
    record.unlink()
    again = run(UNITS, partial(Worker, tmp_path / "again"), tmp_path / "scratch", workers=2)
    assert again == done
    [call] = (tmp_path / "again").iterdir()
    assert call.name == f"part-000001-0-{os.getpid()}"
    # Should the process have died of it, the next try is in another one.
    record.unlink()
    (tmp_path / "scratch/part-000001.tries.json").touch()
    monkeypatch.setattr(ray_workers, "LONGEST_PLACE", 3)
    with pytest.raises(UserError, match="Ray needs a folder"):
        run(UNITS, partial(Worker, tmp_path / "again"), tmp_path / "scratch", workers=2)


@pytest.mark.process
def test_any_number_of_workers_makes_the_same_bytes(tmp_path):
    """In this process; with one worker that is killed once; with three, then in this process to the end.

    With three workers a unit fails.
    """
    scratch = {workers: tmp_path / f"scratch{workers}" for workers in (0, 1, 3)}
    done = run(UNITS, partial(Worker, tmp_path / "calls0"), scratch[0])
    assert [result.name for result in done] == [unit.name for unit in UNITS]
    counts = [len(unit.items) for unit in UNITS]
    assert [result.shard.samples for result in done] == counts
    assert [result.record for result in done] == [{"items": count} for count in counts]
    assert all(result.seconds > 0 and not result.rejects for result in done)
    # The worker dies once, of an item that is then done as any other.
    killed = partial(Worker, tmp_path / "calls1", deadly=("item-005",))
    assert run(UNITS, killed, scratch[1], workers=1) == done
    assert (tmp_path / "calls1/died").exists()
    # The unit that fails fails for all its items, so nothing of it is published; the others are done.
    broken = partial(Worker, tmp_path / "calls3", bad=UNITS[1].items)
    problem = "test: the unit part-000001 failed: RuntimeError: nobody expected this"
    with pytest.raises(UserError, match=problem):
        run(UNITS, broken, scratch[3], workers=3)
    # The workers' processes are others than this one, or nothing was tested.
    processes = {path.name.rsplit("-", 1)[1] for path in (tmp_path / "calls3").iterdir()}
    assert str(os.getpid()) not in processes
    again = run(UNITS, partial(Worker, tmp_path / "again3"), scratch[3])
    assert again == done
    assert begun(tmp_path / "again3") == ["part-000001"]
    for workers, folder in scratch.items():
        publish(folder, tmp_path / f"out{workers}")
        assert not folder.exists()
    alone, one, three = (checksums(tmp_path / f"out{workers}") for workers in scratch)
    assert alone == one == three
    assert len(alone) == 2 * len(UNITS)
    items = [item for unit in UNITS for item in unit.items]
    assert ShardReader(tmp_path / "out3").keys() == items


@pytest.mark.process
def test_what_always_kills_its_worker_is_given_up_and_the_rest_complete(tmp_path):
    """Two killers in one unit and one alone in its own, one that raises.

    With two workers, and in this process, which they kill with them.
    """
    items = [f"item-{index:03d}" for index in range(9)]
    units = units_of("part", items, 4)
    trouble = {"bad": ("item-006",), "deadly": ("item-001", "item-002", "item-008"), "always": True}
    killed = "killed its worker twice"
    rejects = [
        (Reject("item-001", killed), Reject("item-002", killed)),
        (Reject("item-006", "RuntimeError: nobody expected this"),),
        (Reject("item-008", killed),),
    ]
    many = partial(Worker, tmp_path / "calls2", **trouble)
    done = run(units, many, tmp_path / "scratch2", workers=2)
    assert [result.rejects for result in done] == rejects
    assert [result.record for result in done] == [{"items": 2}, {"items": 3}, {}]
    assert done[2].shard is None
    assert not list((tmp_path / "scratch2").glob("*.tries.json"))
    alone = (partial(Worker, tmp_path / "calls0", **trouble), tmp_path / "scratch0")
    codes = []
    while not codes or codes[-1]:
        assert len(codes) < 12
        codes.append(run_apart(units, *alone))
    # The process dies of the first unit as a whole, of two of its items twice, and of the single one twice.
    assert codes == [-signal.SIGKILL] * 7 + [0]
    again = partial(Worker, tmp_path / "calls0")
    assert run(units, again, tmp_path / "scratch0") == done
    assert shards(tmp_path / "scratch0") == shards(tmp_path / "scratch2")
    # The others are what they are without the bad ones among the items.
    plain = [
        WorkUnit("part-000000", ["item-000", "item-003"]),
        WorkUnit("part-000001", ["item-004", "item-005", "item-007"]),
    ]
    run(plain, partial(Worker, tmp_path / "plain"), tmp_path / "scratch")
    assert shards(tmp_path / "scratch") == shards(tmp_path / "scratch0")


@pytest.mark.process
def test_a_death_from_outside_costs_no_item(tmp_path):
    """Killed in the same unit again and again, but never twice alone with an item: nothing is given up."""
    work, scratch = partial(Worker, tmp_path / "calls"), tmp_path / "scratch"
    want = run(UNITS[:1], work, tmp_path / "undisturbed")
    for deadly in (("item-002",), ("item-001",)):
        (tmp_path / "calls/died").unlink(missing_ok=True)
        code = run_apart(UNITS[:1], partial(work, deadly=deadly), scratch)
        assert code == -signal.SIGKILL
    assert run(UNITS[:1], work, scratch) == want
    assert shards(scratch) == shards(tmp_path / "undisturbed")


@pytest.mark.process
def test_a_worker_that_nothing_passes_stops_the_run(tmp_path):
    """A fault that kills or raises for everything is no fault of the items."""
    killer = partial(Worker, tmp_path / "calls", deadly=UNITS[0].items, always=True)
    deadly = (UNITS[:1], killer, tmp_path / "scratch")
    assert [run_apart(*deadly) for _ in range(7)] == [-signal.SIGKILL] * 7
    with pytest.raises(UserError, match="the first 3 items that were tried alone killed their worker"):
        run(*deadly)
    alone = units_of("part", ["a", "b"], 1)
    bad = partial(Worker, tmp_path / "alone", bad=("a", "b"))
    problem = "every one of the 2 items failed, the first with: RuntimeError: nobody expected this"
    # Twice, as the next run must not take the items for broken.
    for _ in range(2):
        with pytest.raises(UserError, match=problem):
            run(alone, bad, tmp_path / "single")
    with pytest.raises(UserError, match="its worker cannot be made: RuntimeError: CUDA is out of order"):
        run(UNITS[:1], Unmade, tmp_path / "unmade")


def test_a_machine_in_trouble_costs_no_item(tmp_path):
    # To give up items for want of memory or disk would leave holes in a cache that nothing is wrong with.
    for error in (MemoryError("no more"), OSError(28, "No space left on device")):
        with pytest.raises(UserError, match=f"part-000000 failed: {type(error).__name__}"):
            run(UNITS[:1], partial(Troubled, error), tmp_path / "scratch")


def test_a_failed_unit_leaves_its_traceback_and_nothing_half_written(tmp_path):
    scratch = tmp_path / "scratch"
    bad = partial(Worker, tmp_path / "calls", bad=UNITS[1].items)
    with pytest.raises(UserError, match="the unit part-000001 failed: RuntimeError"):
        run(UNITS, bad, scratch)
    assert "nobody expected this" in (scratch / "part-000001.error.txt").read_text()
    assert not list(scratch.glob(".*"))
    assert not list(scratch.glob("*.tries.json"))
    assert len(list(scratch.glob("*.tar"))) == len(UNITS) - 1


def test_the_plan_is_written_and_said_and_refused_when_the_disk_is_too_small(tmp_path, capfd):
    work, scratch = partial(Worker, tmp_path / "calls"), tmp_path / "scratch"
    with pytest.raises(UserError, match=r"takes about 18\.0 TB, but the disk of .* has only .* free"):
        run(UNITS, work, scratch, {"frames": 1, "views": 4}, 1e12)
    assert not shards(scratch)
    assert not list(tmp_path.glob("calls/*"))
    plan = json.loads((scratch / "plan.json").read_text())
    assert [WorkUnit(**unit) for unit in plan["units"]] == UNITS
    said = capfd.readouterr().err
    assert said.startswith("test: 5 of 5 shards to do: 18 frames, 72 views; about 18.0 TB, ")
    assert said.endswith("free; time not known yet\n")
    with Costs("nothing", "smoke") as costs:
        run(UNITS, work, scratch, {"frames": 1})
    told = costs.work["test"]
    assert told["items"] == 18
    assert told["items_per_second"] > 0
    record_path(UNITS[0], scratch).unlink()
    capfd.readouterr()
    # What a unit takes is known by now.
    run(UNITS, work, scratch, {"frames": 1})
    assert capfd.readouterr().err.startswith("test: 1 of 5 shards to do, 4 done already: 4 frames; about 1.")
    run(UNITS, work, scratch, {"frames": 1})
    assert capfd.readouterr().err == "test: all 5 shards are done already\n"


@pytest.mark.process
def test_a_killed_run_goes_on_where_it_was(tmp_path):
    work, scratch = partial(Worker, tmp_path / "calls", deadly=("item-009",)), tmp_path / "scratch"
    assert run_apart(UNITS, work, scratch) == -signal.SIGKILL
    # Two units are whole; of the third there is a temporary file, which must not be taken for a shard.
    assert len(list(scratch.glob("*.done.json"))) == 2
    assert len(list(scratch.glob(".*.tmp"))) == 1
    done = run(UNITS, partial(Worker, tmp_path / "again"), scratch)
    again = set(begun(tmp_path / "again"))
    assert again == {f"part-00000{number}" for number in (2, 3, 4)}
    publish(scratch, tmp_path / "out")
    assert run(UNITS, partial(Worker, tmp_path / "whole"), scratch) == done
    publish(scratch, tmp_path / "undisturbed")
    assert checksums(tmp_path / "out") == checksums(tmp_path / "undisturbed")


@pytest.mark.parametrize("error", [UserError("the weights are missing."), RuntimeError("the weights\nare")])
def test_a_worker_that_cannot_be_made_stops_the_run(tmp_path, error):
    """No other unit could be done, and with ten thousand of them each would load for seconds in vain."""
    made = []

    def make():
        made.append(1)
        raise error

    words = "part-000000 failed: its worker cannot be made: .*the weights are"
    with pytest.raises(UserError, match=words):
        run(UNITS, make, tmp_path / "scratch")
    assert len(made) == 1


def test_a_cluster_that_is_not_there(tmp_path):
    # A port that is taken, but at which nothing listens.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = machine(2)
        nowhere.ray_address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match="no Ray cluster answers at"):
            run_units(UNITS, Silent, tmp_path / "scratch", nowhere, "test")


def test_only_what_is_whole_and_ours_is_skipped(tmp_path):
    scratch = tmp_path / "scratch"
    first = run(UNITS, partial(Worker, tmp_path / "first"), scratch)
    before = shards(scratch)
    # A byte in the first shard, no second shard, no third record, half of a fourth record.
    damaged = bytearray((scratch / "part-000000.tar").read_bytes())
    damaged[2000] ^= 1
    (scratch / "part-000000.tar").write_bytes(damaged)
    (scratch / "part-000001.tar").unlink()
    (scratch / "part-000002.done.json").unlink()
    (scratch / "part-000003.done.json").write_text("{")
    again = run(UNITS, partial(Worker, tmp_path / "again"), scratch)
    assert again == first
    assert shards(scratch) == before
    repeated = begun(tmp_path / "again")
    assert repeated == [f"part-00000{index}" for index in range(4)]
    # The same name with other items is other work: only that unit is done anew.
    other = [WorkUnit(UNITS[0].name, UNITS[1].items), *UNITS[1:]]
    changed = run(other, partial(Worker, tmp_path / "other"), scratch)
    assert changed[0].shard != first[0].shard
    assert len(list((tmp_path / "other").iterdir())) == 1


class Unmade:
    def __init__(self):
        raise RuntimeError("CUDA is out of order")


class Troubled:
    def __init__(self, error: Exception):
        self.error = error

    def __call__(self, unit: WorkUnit):
        raise self.error


class Silent:
    def __call__(self, unit: WorkUnit):
        return [], {"sum": sum(unit.items)}


def test_a_unit_may_make_no_samples(tmp_path):
    done = run(units_of("part", [1, 2, 3], 2), Silent, tmp_path / "scratch")
    assert [(result.shard, result.record) for result in done] == [(None, {"sum": 3}), (None, {"sum": 3})]
    publish(tmp_path / "scratch", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


class Tabular:
    """A worker whose units leave a row for each item, which it adds as it makes the sample."""

    schema = pa.schema({"item": pa.string(), "place": pa.int32()})

    def __call__(self, unit: WorkUnit):
        rows = Rows(self.schema)
        return self.samples(unit, rows), {"count": len(unit.items), "rows": rows}

    def samples(self, unit, rows):
        for place, item in enumerate(unit.items):
            rows.rows.append({"item": item, "place": place})
            yield item, {"place.npy": encode_npy(np.array(place))}


def test_a_unit_leaves_its_rows_beside_its_shard(tmp_path):
    scratch = tmp_path / "scratch"
    first = run(UNITS, Tabular, scratch)
    assert first[0].record == {"count": 4}
    found = pa.concat_tables(tables_of(first, "rows", scratch)).to_pylist()
    assert [row["item"] for row in found] == [item for unit in UNITS for item in unit.items]
    assert [row["place"] for row in found[:5]] == [0, 1, 2, 3, 0]
    # A table that is cut short, and one that is gone: these two units are done again, and no other.
    cut, gone, whole = (table_path(unit.name, "rows", scratch) for unit in UNITS[:3])
    content = cut.read_bytes()
    cut.write_bytes(content[:-20])
    gone.unlink()
    before = whole.stat().st_mtime_ns
    assert run(UNITS, Tabular, scratch) == first
    assert cut.read_bytes() == content and gone.exists()
    assert whole.stat().st_mtime_ns == before
    publish(scratch, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_publishing_replaces_what_was_there(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/stale.tar").touch()
    run(UNITS[:1], partial(Worker, tmp_path / "calls"), tmp_path / "scratch")
    publish(tmp_path / "scratch", tmp_path / "out")
    shown = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert shown == ["part-000000.tar", "part-000000.tar.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calls", "out"]


def test_fingerprint_sees_every_input(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").write_text("1")
    first = fingerprint(__file__, 1, "x", {"b": 2}, UNITS[0], tmp_path / "in")
    assert len(first) == 16
    assert first == fingerprint(__file__, 1, "x", {"b": 2}, UNITS[0], tmp_path / "in")
    assert first != fingerprint(__file__, 1, "x", {"b": 3}, UNITS[0], tmp_path / "in")
    (tmp_path / "in/a").write_text("2")
    assert first != fingerprint(__file__, 1, "x", {"b": 2}, UNITS[0], tmp_path / "in")
    with pytest.raises(UserError, match="missing"):
        fingerprint(__file__, tmp_path / "nowhere")


def test_fingerprint_depends_on_the_code_that_is_imported():
    # Too few modules would keep stale results, too many would throw away hours of work for an edit elsewhere.
    names = set(closure("pipeline.render.views"))
    engine = {"pipeline.engine.run", "pipeline.engine.isolation"}
    assert {"pipeline.render.views", "model.psi.network", *engine} <= names
    assert not {"model.genhead", "pipeline.train.loop", "pipeline.engine.estimate", "pipeline.cli"} & names
    views, ingest = SOURCE / "pipeline/render/views.py", SOURCE / "pipeline/ingest/worker.py"
    assert fingerprint(str(views)) != fingerprint(str(ingest))
