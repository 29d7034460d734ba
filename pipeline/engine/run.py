"""The engine: work units in a fixed plan, done by one process or by many, with the same bytes, and resumable at every unit.

A unit is one shard: a name and a fixed list of items. Units are worked on in a scratch folder whose name depends on everything that matters
(pipeline/engine/fingerprint.py, pipeline/engine/scratch.py). A finished unit leaves its shard and then its record (pipeline/engine/work_unit.py); a
run that was stopped skips what has both. An item that raises or kills its worker is given up, the others are done (pipeline/engine/isolation.py).
`workers: 0` works in this process, otherwise Ray Data feeds a pool of actors with one torch thread each (pipeline/engine/ray_workers.py). Who does a
unit, and when, changes nothing in it, as workers draw their randomness from counters.
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
from pipeline.engine.isolation import HERE, Maker, Outcome, attempt, set_torch
from pipeline.engine.ray_workers import WorkerSettings, with_ray
from pipeline.engine.work_unit import Done, Work, WorkUnit, finished, record_path


def run_units(
    units: Sequence[WorkUnit],
    make_worker: Callable[[], Work],
    scratch: str | Path,
    machine: WorkerSettings,
    label: str,
    counts: Mapping[str, int] = {"items": 1},
    item_bytes: float = 0.0,
) -> list[Done]:
    """Do all units that are not done yet; the results in the order of `units`.

    `make_worker` (a class or a partial of one, picklable) is called once per process; the worker it makes is called with a unit and returns
    samples for the shard and a JSON-able record. It runs with one torch thread, and is called again with a part of the items when one of
    them fails: `Done.rejects` has those that were given up. `counts` and `item_bytes` are for the plan (see `Estimate`). A unit that fails, or
    all of whose items do, does not stop the others, unless they would fail as well (a full disk); at the end UserError names the failed
    ones, and the next run tries only these again.
    """
    scratch = Path(scratch).resolve()
    if len({unit.name for unit in units}) != len(units):
        raise ValueError(f"{label}: two units have the same name")
    estimate = Estimate(label, units, counts, item_bytes)
    before = {unit.name: done for unit in units if (done := finished(unit, scratch))}
    pending = [unit for unit in units if unit.name not in before]
    for unit in pending:  # of which a worker could think that it is done
        record_path(unit, scratch).unlink(missing_ok=True)
    _sweep(scratch)
    estimate.start(before, scratch, machine.workers)
    started = time.monotonic()
    failed = _work_off(estimate, pending, make_worker, scratch, machine)
    if failed:
        name = min(failed)
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise UserError(
            f"{label}: the unit {name}{more} failed: {failed[name]} What is finished is kept: run again to go on."
        )
    done = [finished(unit, scratch, verify=False) for unit in units]
    if None in done:
        raise UserError(
            f"{label}: the unit {units[done.index(None)].name} is not done although every worker has ended. Run again to go on."
        )
    _sweep(scratch)
    estimate.end([one for one in done if one.name not in before], time.monotonic() - started)  # pyrefly: ignore[missing-attribute]
    rejects = [reject for one in done for reject in one.rejects]  # pyrefly: ignore[missing-attribute]
    if rejects and len(rejects) == sum(len(unit.items) for unit in units):
        for unit in units:
            record_path(unit, scratch).unlink(missing_ok=True)
        raise UserError(
            f"{label}: every one of the {len(rejects)} {estimate.noun} failed, the first with: {rejects[0].reason}"
        )
    return done


def _sweep(scratch: Path) -> None:
    """Remove the half-written files of workers that were killed."""
    for half in scratch.glob(".*.tmp"):
        half.unlink(missing_ok=True)


def _work_off(
    estimate: Estimate,
    pending: Sequence[WorkUnit],
    make_worker: Callable[[], Work],
    scratch: Path,
    machine: WorkerSettings,
) -> dict[str, str]:
    """Do the units; the names of those that failed, with the reason."""
    if not pending:
        return {}
    if machine.workers == 0:
        outcomes = _in_process(pending, make_worker, scratch)
    else:
        outcomes = with_ray(pending, make_worker, scratch, machine)
    sizes = {unit.name: len(unit.items) for unit in estimate.units}
    total = sum(sizes.values())
    initial = total - sum(len(unit.items) for unit in pending)
    failed: dict[str, str] = {}
    with contextlib.closing(outcomes):
        for outcome in progress(
            outcomes,
            label=estimate.label,
            total=total,
            initial=initial,
            unit=estimate.noun,
            size=lambda one: sizes[one.name],
        ):
            if outcome.failure:
                failed[outcome.name] = outcome.failure
            if outcome.stop:
                break
    return failed


def _in_process(
    units: Sequence[WorkUnit], make_worker: Callable[[], Work], scratch: Path
) -> Generator[Outcome]:
    maker, run = Maker(make_worker), f"{HERE}-{os.getpid()}-{uuid.uuid4().hex}"
    for unit in units:
        before = set_torch(1, not torch.cuda.is_available())
        try:
            outcome = attempt(unit, maker, scratch, run)
        finally:
            set_torch(*before)
        yield outcome
