"""Doing again what a stage gave up or rejected, and nothing else: `psi4d retry STAGE`.

The next run of the stage finds all other units done: their records come from the last run, and their shards
from there or from what it published.
"""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.caches import kinds
from pipeline.caches.repair import JOBS
from pipeline.config.params import Params
from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.core.paths import HEADS, INGEST, VIEWS
from pipeline.engine.job import Job
from pipeline.engine.scratch import (
    INPUTS,
    PLAN,
    is_running,
    last_folder,
    link_or_copy,
    read_plan,
    scratch_folder,
)
from pipeline.engine.work_unit import Done, WorkUnit, finished, record_path, table_path
from pipeline.store.shards import read_sidecar, sidecar_path

# The stages whose work is in units: what their caches look like, and where they are published.
PLACES = {
    kinds.INGEST.stage: (kinds.INGEST, INGEST),
    kinds.GENHEAD.stage: (kinds.GENHEAD, HEADS),
    kinds.VIEWS.stage: (kinds.VIEWS, VIEWS),
}


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
    if stage not in PLACES:
        known = ", ".join(PLACES)
        advice = f"`dvc repro -f -s {stage}` does it as a whole."
        raise UserError(f"{stage} cannot be retried in parts, only {known}. {advice}")
    # The last run knows its units; another one may have other params, and so other units.
    layout, out = PLACES[stage]
    last = last_folder(stage)
    if last is None or not read_plan(last):
        raise UserError(f"{stage} has not worked here yet, so there is nothing to retry: dvc repro {stage}.")
    if is_running(read_plan(last)) and last.name != stage:
        raise UserError(f"{stage} is running. Stop it or wait for its end, then try again.")
    job = JOBS[layout.name](params)
    if _inputs(last) != job.inputs:
        raise UserError(
            f"{stage}: params or inputs are not those of the last run, so its units would not fit to new "
            f"ones. `dvc repro {stage}` does all of them."
        )
    again, kept = _sort(job, last, out / "shards")
    # What is not done yet the next run does by itself.
    if again:
        _prepare(job, last, kept)
    return Retry(again, len(kept), len(job.units) - len(again) - len(kept))


@dataclass(frozen=True)
class _Kept:
    """A finished unit, and the folder in which its shard lies."""

    done: Done
    shards: Path


def _inputs(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return (folder / INPUTS).read_text()
    return ""


def _sort(job: Job, last: Path, published: Path) -> tuple[dict[str, str], list[_Kept]]:
    """The finished units to do again with the reason, and those that are kept."""
    again: dict[str, str] = {}
    kept = []
    for unit in job.units:
        done = finished(unit, last, verify=False)
        if done is None:
            continue
        shards = next((folder for folder in (last, published) if _has_shard(folder, done)), None)
        if reason := _reason(job, unit, done, last):
            again[unit.name] = reason
        elif shards is None:
            again[unit.name] = "its shard is gone"
        else:
            kept.append(_Kept(done, shards))
    return again, kept


def _reason(job: Job, unit: WorkUnit, done: Done, last: Path) -> str:
    """Why a finished unit must be done again, or nothing."""
    reasons = []
    if done.rejects:
        reasons.append(f"{len(done.rejects)} given up")
    rejected = job.rejected(done, last) if job.rejected else []
    if rejected:
        reasons.append(f"{len(rejected)} rejected")
    since = record_path(unit, last).stat().st_mtime
    if job.changed and job.changed(unit, since):
        reasons.append("its files have changed")
    return ", ".join(reasons)


def _has_shard(folder: Path, done: Done) -> bool:
    """Whether a folder has the shard of a unit by its sidecar; the next run compares the whole of it."""
    if done.shard is None:
        return True
    path = folder / done.shard.name
    with contextlib.suppress(UserError):
        record, _ = read_sidecar(path)
        return record == done.shard and path.is_file()
    return False


def _prepare(job: Job, last: Path, kept: list[_Kept]) -> None:
    """Fill the scratch folder of the next run with the units that are kept, and with nothing else."""
    folder = scratch_folder(job.label, job.mark)
    whole = folder.with_name(f"{folder.name}.retry")
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir(parents=True)
    link_or_copy(last / INPUTS, whole / INPUTS)
    # Of the last run, but its process does not work here.
    plan = read_plan(last)
    write_json(whole / PLAN, {**plan, "pid": None})
    for unit in kept:
        done, name = unit.done, unit.done.name
        files = [table_path(name, table, last) for table in done.tables]
        if done.shard:
            shard = unit.shards / done.shard.name
            files += [shard, sidecar_path(shard)]
        # The record comes last, as it says that the rest is there.
        for file in [*files, record_path(WorkUnit(name, []), last)]:
            # DVC may have made the file a link into its cache.
            link_or_copy(file.resolve(), whole / file.name)
    shutil.rmtree(folder, ignore_errors=True)
    whole.rename(folder)
