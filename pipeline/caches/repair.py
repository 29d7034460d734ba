"""Making again what is broken in a cache: only the broken shards are made, with the worker of their stage.

The result has the bytes that it had: nothing is done unless DVC finds the inputs of the stage unchanged,
and a shard is only put into its place when it is the one that DVC recorded. The index of a multi-view cache
is made again from its shards; the tables of ingested faces have numbers that are in no shard, so a broken
one means the whole stage.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from pipeline.caches import kinds
from pipeline.caches.dvc_record import changed_inputs, is_as_recorded, md5, mend_cache, recorded_files
from pipeline.caches.finding import Verdict
from pipeline.caches.kinds import Layout
from pipeline.config.params import Params
from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes
from pipeline.core.paths import CLIP_LABELS, GENHEAD, INGEST, INPUTS, LABELS, MOTION, PERCEPTION, PSI3D
from pipeline.engine.job import Job
from pipeline.engine.scratch import scratch_folder
from pipeline.ingest import worker as ingester
from pipeline.ingest.manifest import source_folders, write_manifest
from pipeline.ingest.worker import ingest
from pipeline.render import genhead, views

SHOWN = 3  # of many names


def repair(params: Params, folder: Path, verdict: Verdict) -> list[str]:
    """Make again what `verdict` found broken in `folder`; returns the names of the files made.

    Raises UserError when a file lies there that does not belong, when the inputs are not those of before,
    or when the bytes are not.
    """
    extra = [finding.file for finding in verdict.findings if finding.extra]
    if extra:
        raise UserError(
            f"nothing was repaired: {folder} has files that do not belong there ({_some(extra)}). "
            "Move them away, then run again."
        )
    if verdict.layout is kinds.INGEST:
        # DVC knows the user's files by their manifest, which is as old as its last run.
        write_manifest(params.ingest, INPUTS)
    if changed := changed_inputs(folder):
        raise UserError(
            f"nothing was repaired: {folder} was made from other inputs than there are now "
            f"({_some(changed)}), so new shards would not fit the old ones. Run `dvc repro` instead."
        )
    # Both refusals come before any work: a repair may take hours.
    made = _make(params, folder, verdict.layout, verdict.damaged())
    if not is_as_recorded(folder):
        raise UserError(
            f"{folder} was repaired, but has not the bytes that dvc.lock records. "
            "Run `dvc repro`, which makes it as a whole."
        )
    sidecars = {f"{file}.json" for file in made}
    mend_cache(folder, made | sidecars)
    return sorted(made)


def _make(
    params: Params,
    folder: Path,
    layout: Layout,
    damaged: set[str],
) -> set[str]:
    """Make the shards and tables `damaged` again; returns the names of all files that were made."""
    job = JOBS[layout.name](params)
    tables = damaged & set(layout.tables)
    # A table that no shard tells is made by the whole stage, which makes its shards as well.
    if tables and not job.tables:
        settings = params.ingest
        ingest(
            settings,
            params.networks.image,
            params.machine,
            *source_folders(settings),
            folder,
        )
        shards = {f"shards/{path.name}" for path in (folder / "shards").glob("*.tar")}
        return shards | set(layout.tables)
    if shards := damaged - tables:
        _make_shards(params, folder, job, shards)
    if tables:
        job.tables(folder / "shards", folder)
    return damaged


def _make_shards(
    params: Params,
    folder: Path,
    job: Job,
    shards: set[str],
) -> None:
    """Make shards in a folder of their own, and put them into their places when all are as they were."""
    # A folder of its own, so that a repair that is killed goes on and leaves the cache as it was.
    scratch = scratch_folder("repair", job.mark)
    names = {Path(shard).stem for shard in shards}
    done = job.run(scratch, params.machine, only=names)
    files = []
    for result in done:
        # A sidecar comes before its shard, so that a shard that is there has one.
        files += [f"{result.name}.tar.json", f"{result.name}.tar"]
    # Other machines round some sums differently, and shards of two origins would mix without an error.
    recorded = recorded_files(folder)
    other = []
    for name in files if recorded else []:
        if md5(scratch / name) != recorded.get(f"shards/{name}"):
            other.append(name)
    if other:
        shutil.rmtree(scratch)
        raise UserError(
            "nothing was repaired: made again, shards have not the bytes that dvc.lock records "
            f"({_some(other)}): another machine or other packages made them. "
            "Run `psi4d clean --units --yes` and `dvc repro -f` to make all of them here."
        )
    for name in files:
        write_bytes(folder / "shards" / name, (scratch / name).read_bytes())
    shutil.rmtree(scratch)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    more = len(names) - SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _views_job(params: Params) -> Job:
    return views.job(params, INGEST, CLIP_LABELS, MOTION, PERCEPTION, PSI3D)


def _heads_job(params: Params) -> Job:
    return genhead.job(params, LABELS, GENHEAD)


def _faces_job(params: Params) -> Job:
    return ingester.job(params.ingest, params.networks.image, *source_folders(params.ingest))


JOBS: dict[str, Callable[[Params], Job]] = {
    kinds.VIEWS.name: _views_job,
    kinds.GENHEAD.name: _heads_job,
    kinds.INGEST.name: _faces_job,
}
