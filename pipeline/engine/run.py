"""The engine: work units in a fixed plan, done by one process or by many, resumable at every unit.

A unit is one shard: a name, a fixed list of items, and fingerprints of what they are made from and of the
code. Units are worked on in a scratch folder of this plan (`scratch`), into which those come first that an
earlier run has finished. A finished unit leaves its shard, its tables and then its record (`work_unit`); a
run that was stopped skips what has all of them. An item that raises or kills its worker is given up, the
others are done (`isolation`). `workers: 0` works in this process, and so does a run that is known to be
short; otherwise Ray feeds a pool of actors with one torch thread each (`ray_workers`). The bytes are the same
either way, as workers draw their randomness from names and numbers.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

import torch

from pipeline.core.errors import UserError
from pipeline.core.progress import progress
from pipeline.engine.estimate import Estimate
from pipeline.engine.isolation import HERE, Maker, Outcome, attempt, set_torch, was_interrupted
from pipeline.engine.ray_workers import WorkerSettings, with_ray
from pipeline.engine.work_unit import Done, Work, WorkUnit, finished, record_path

# Of one process: about as long as Ray and its workers take until they begin.
SHORT_SECONDS = 10.0


def run_units(
    units: Sequence[WorkUnit],
    make_worker: Callable[[], Work],
    scratch: str | Path,
    machine: WorkerSettings,
    label: str,
    counts: Mapping[str, int] = {"items": 1},
    item_bytes: float = 0.0,
    gpu: bool = False,
) -> list[Done]:
    """Do all units that are not done yet; the results in the order of `units`.

    `make_worker` (a class or a partial of one, picklable) is called once per process. The worker it makes is
    called with a unit and returns samples for the shard and a record (see `Work`). It runs with one torch
    thread, and is called again with a part of the items when one of them fails: `Done.rejects` has those that
    were given up. `counts` and `item_bytes` are for the plan (see `Estimate`). `gpu` says that workers
    have a use for a GPU: then there is one for each of the cluster's.

    A unit that fails, or all of whose items do, does not stop the others, unless they would fail as well (a
    full disk). At the end UserError names the failed ones, and the next run tries only these again.
    """
    scratch = Path(scratch).resolve()
    if len({unit.name for unit in units}) != len(units):
        raise ValueError(f"{label}: two units have the same name")
    estimate = Estimate(label, units, counts, item_bytes)
    before = {}
    for unit in units:
        done = finished(unit, scratch)
        if done:
            before[unit.name] = done
    pending = [unit for unit in units if unit.name not in before]
    # A worker would believe the record of a unit whose shard is damaged.
    for unit in pending:
        record_path(unit, scratch).unlink(missing_ok=True)
    _sweep(scratch)
    estimate.start(before, scratch, machine.workers)
    started = time.monotonic()
    # A cluster is running already.
    short = not machine.ray_address and _is_short(estimate, pending, before, scratch)
    if machine.workers == 0 or short:
        outcomes = _in_process(pending, make_worker, scratch)
    else:
        outcomes = with_ray(pending, make_worker, scratch, machine, gpu)
    failed = _work_off(estimate, pending, outcomes) if pending else {}
    seconds = time.monotonic() - started
    if failed:
        name = min(failed)
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        advice = "What is finished is kept: run again to go on."
        raise UserError(f"{label}: the unit {name}{more} failed: {failed[name]} {advice}")
    results = _results(units, scratch, label)
    _sweep(scratch)
    estimate.end([one for one in results if one.name not in before], seconds)
    _refuse_if_all_failed(results, estimate, scratch)
    return results


def _results(units: Sequence[WorkUnit], scratch: Path, label: str) -> list[Done]:
    """What is on disk of all units. Raises UserError when one is not done."""
    results = []
    for unit in units:
        done = finished(unit, scratch, verify=False)
        if done is None:
            problem = f"the unit {unit.name} is not done although every worker has ended"
            raise UserError(f"{label}: {problem}. Run again to go on.")
        results.append(done)
    return results


def _refuse_if_all_failed(results: Sequence[Done], estimate: Estimate, scratch: Path) -> None:
    """Raises UserError when every single item was given up: the fault is none of theirs.

    The records go, or the next run would take all items for broken.
    """
    rejects = [reject for one in results for reject in one.rejects]
    items = sum(len(unit.items) for unit in estimate.units)
    if not rejects or len(rejects) < items:
        return
    for unit in estimate.units:
        record_path(unit, scratch).unlink(missing_ok=True)
    failed = f"every one of the {items} {estimate.noun} failed"
    raise UserError(f"{estimate.label}: {failed}, the first with: {rejects[0].reason}")


def _sweep(scratch: Path) -> None:
    """Remove the half-written files of workers that were killed."""
    for half in scratch.glob(".*.tmp"):
        half.unlink(missing_ok=True)


def _is_short(
    estimate: Estimate, pending: Sequence[WorkUnit], done: Mapping[str, Done], scratch: Path
) -> bool:
    """Whether this process has done the units before Ray's workers would begin, as when one clip is new."""
    # A unit that killed its process is done in one that may die.
    if any(was_interrupted(unit, scratch) for unit in pending):
        return False
    return 0 < estimate.seconds(pending, done) < SHORT_SECONDS


def _work_off(
    estimate: Estimate, pending: Sequence[WorkUnit], outcomes: Generator[Outcome]
) -> dict[str, str]:
    """Do the units; the names of those that failed, with the reason."""
    sizes = {unit.name: len(unit.items) for unit in estimate.units}
    total = sum(sizes.values())
    bar = progress(
        outcomes,
        label=estimate.label,
        total=total,
        initial=total - sum(sizes[unit.name] for unit in pending),
        unit=estimate.noun,
        size=lambda outcome: sizes[outcome.name],
    )
    failed: dict[str, str] = {}
    # Closing ends Ray at once, also when an outcome stops the run.
    with contextlib.closing(outcomes):
        for outcome in bar:
            if outcome.failure:
                failed[outcome.name] = outcome.failure
            if outcome.stop:
                break
    return failed


def _in_process(
    units: Sequence[WorkUnit], make_worker: Callable[[], Work], scratch: Path
) -> Generator[Outcome]:
    # One worker for all units, as loading its networks takes seconds.
    maker = Maker(make_worker)
    run = f"{HERE}-{os.getpid()}-{uuid.uuid4().hex}"
    for unit in units:
        before = set_torch(1, not torch.cuda.is_available())
        try:
            outcome = attempt(unit, maker, scratch, run)
        finally:
            set_torch(*before)
        yield outcome
