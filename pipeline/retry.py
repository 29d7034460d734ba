"""Doing again what a stage gave up or rejected, and nothing else: `psi4d retry STAGE`.

The next run of the stage finds all other units done: their records come from the last run, and their shards
from there or from what it published.
"""

import json
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pipeline.caches import kinds
from pipeline.caches.repair import JOBS
from pipeline.config.params import Params
from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.engine.job import Job
from pipeline.engine.scratch import (
    PLAN,
    finished_folders,
    is_running,
    last_folder,
    link_or_copy,
    read_plan,
    scratch_folder,
)
from pipeline.engine.work_unit import Done, WorkUnit, files_of, finished, mark, record_path

# The stages whose work is in units, and what their caches look like.
LAYOUTS = {layout.stage: layout for layout in (kinds.INGEST, kinds.GENHEAD, kinds.VIEWS)}

CHANGED = "its files have changed"


@dataclass(frozen=True)
class Retry:
    """What the next run of a stage will do.

    `again` has the reason for each unit of the last run that is done once more, `kept` is the number of those
    that stay as they are, `left` of those that were not done yet.
    """

    again: dict[str, str]
    kept: int
    left: int


def retry(params: Params, stage: str) -> Retry:
    """Let the next run of `stage` do again what the last one gave up or rejected, and what has changed since.

    Where there is nothing of the kind, nothing happens. Raises UserError when the stage has no units of its
    own or has not worked here, while it runs, and when params or inputs are others than those of its units.
    """
    if stage not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        advice = "`dvc repro -f -s STAGE` does a stage as a whole again, `dvc stage list` names all."
        raise UserError(f"{stage} cannot be retried in parts, only {known}. {advice}")
    # The last run knows its units; another one may have other params, and so other units.
    last = last_folder(stage)
    if last is None or not read_plan(last):
        raise UserError(f"{stage} has not worked here yet, so there is nothing to retry: dvc repro {stage}.")
    if is_running(read_plan(last)) and last.name != stage:
        raise UserError(f"{stage} is running. Stop it or wait for its end, then try again.")
    job = JOBS[LAYOUTS[stage].name](params)
    again, kept = _sort(job, last)
    if not kept and set(again.values()) == {CHANGED}:
        raise UserError(
            f"{stage}: params or inputs are not those of the last run, so its units would not fit to new "
            f"ones. `dvc repro {stage}` does all of them."
        )
    # What is not done yet the next run does by itself.
    if again:
        _prepare(job, last, kept)
        _forget(job, again)
    return Retry(again, len(kept), len(job.units) - len(again) - len(kept))


def _sort(job: Job, last: Path) -> tuple[dict[str, str], list[tuple[WorkUnit, Done]]]:
    """The finished units to do again with the reason, and those that are kept."""
    again: dict[str, str] = {}
    kept = []
    for unit in job.units:
        if not record_path(unit, last).is_file():
            continue
        done = finished(unit, last, verify=False, any_code=True)
        if done is None:
            again[unit.name] = CHANGED
        elif reason := _reason(job, done, last):
            again[unit.name] = reason
        else:
            kept.append((unit, done))
    return again, kept


def _reason(job: Job, done: Done, last: Path) -> str:
    """Why a finished unit must be done again, or nothing."""
    reasons = []
    if done.rejects:
        reasons.append(f"{len(done.rejects)} given up")
    rejected = job.rejected(done, last) if job.rejected else []
    if rejected:
        reasons.append(f"{len(rejected)} rejected")
    if not all(file.is_file() for file in files_of(done, last)):
        reasons.append("its shard is gone")
    return ", ".join(reasons)


def _prepare(job: Job, last: Path, kept: list[tuple[WorkUnit, Done]]) -> None:
    """Fill the scratch folder of the next run with the units that are kept, and with nothing else."""
    folder = scratch_folder(job.label, job.mark)
    whole = folder.with_name(f"{folder.name}.retry")
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir(parents=True)
    # Of the last run, but its process does not work here.
    plan = read_plan(last)
    write_json(whole / PLAN, {**plan, "pid": None})
    for unit, done in kept:
        for file in files_of(done, last):
            link_or_copy(file, whole / file.name)
        # They stay even if another code made them, and the next run takes them for its own.
        record = json.loads(record_path(unit, last).read_bytes())
        write_json(record_path(unit, whole), {**record, "mark": mark(unit)})
    shutil.rmtree(folder, ignore_errors=True)
    whole.rename(folder)


def _forget(job: Job, names: Collection[str]) -> None:
    """Remove the records of units from earlier runs, or the next one would take them from there."""
    for folder in finished_folders(job.label):
        for name in names:
            record_path(WorkUnit(name, []), folder).unlink(missing_ok=True)
