"""Making again what is broken in a cache: a shard is a unit of the worker pool, so only the broken ones run, with the worker of their stage.

The result has the bytes that it had: nothing is done unless DVC finds the inputs of the stage unchanged, and a shard is only put into its
place when it is the one that DVC recorded. The index of a multi-view cache is made again from its shards; the tables of ingested faces have
numbers that are in no shard, so a broken one means the whole stage.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.caches import kinds
from pipeline.caches.dvc_record import changed_inputs, is_as_recorded, md5, mend_cache, recorded_files
from pipeline.caches.verify import Verdict
from pipeline.config.params import Params
from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes
from pipeline.core.paths import (
    CLIP_LABELS,
    GENERATED,
    GENHEAD,
    INGEST,
    LABELS,
    MOTION,
    PERCEPTION,
    PSI3D,
)
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.run import run_units
from pipeline.engine.scratch import scratch_folder
from pipeline.engine.work_unit import Work, WorkUnit, units_of
from pipeline.ingest.worker import Ingester, ingest
from pipeline.render.genhead import HeadRenderer
from pipeline.render.quality_gate import failed_measures
from pipeline.render.views import ViewRenderer, usable_frames
from pipeline.store.view_index import NAME, write_index


@dataclass(frozen=True)
class Plan:
    """How a stage makes its folder: its units with their worker, and its tables from whole shards or, where they have more, with everything."""

    units: Callable[[], list[WorkUnit]]
    worker: Callable[[], Work]
    tables: Callable[[], object] | None = None
    everything: Callable[[], object] | None = None


def repair(params: Params, folder: Path, verdict: Verdict) -> list[str]:
    """Make again what `verdict` found broken in `folder`; returns the names of the files made.

    Raises UserError when a file lies there that does not belong, when the inputs are not those of before, or when the bytes are not.
    """
    extra = [finding.file for finding in verdict.findings if finding.extra]
    if extra:
        raise UserError(
            f"nothing was repaired: {folder} has files that do not belong there ({_some(extra)}). Move them away, then run again."
        )
    if changed := changed_inputs(folder):
        raise UserError(
            f"nothing was repaired: {folder} was made from other inputs than there are now ({_some(changed)}), "
            "so new shards would not fit the old ones. Run `dvc repro` instead."
        )
    plan = PLANS[verdict.layout.name](params, folder)
    made = verdict.damaged()
    tables = made & set(verdict.layout.tables)
    if tables and plan.everything:
        plan.everything()
        made = {*verdict.layout.tables, *(f"shards/{name}" for name in verdict.samples)}
    else:
        if made - tables:
            _make(
                [unit for unit in plan.units() if f"shards/{unit.name}.tar" in made],
                plan.worker,
                params,
                folder,
            )
        if tables and plan.tables:
            plan.tables()
    if not is_as_recorded(folder):
        raise UserError(
            f"{folder} was repaired, but has not the bytes that dvc.lock records. Run `dvc repro`, which makes it as a whole."
        )
    mend_cache(folder, [f"{name}{end}" for name in made for end in ("", ".json")])
    return sorted(made)


def _make(units: list[WorkUnit], worker: Callable[[], Work], params: Params, folder: Path) -> None:
    """Run the units of the broken shards in a folder of their own and put the shards into their places when all are as they were."""
    scratch = scratch_folder(
        "repair", fingerprint(__file__, params, folder.as_posix(), Path("dvc.lock"))
    )  # which names all inputs of the stage
    recorded = recorded_files(folder)
    files = [
        f"{result.name}.tar{end}"
        for result in run_units(units, worker, scratch, params.machine, "repair")
        for end in (".json", "")
    ]
    other = [name for name in files if recorded and md5(scratch / name) != recorded.get(f"shards/{name}")]
    if other:
        shutil.rmtree(scratch)
        raise UserError(
            f"nothing was repaired: made again, shards have not the bytes that dvc.lock records ({_some(other)}): "
            "another machine or other packages made them. Run `dvc repro -f` to make all of them here."
        )
    for name in files:
        write_bytes(folder / "shards" / name, (scratch / name).read_bytes())
    shutil.rmtree(scratch)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _views(params: Params, folder: Path) -> Plan:
    inputs = (INGEST, CLIP_LABELS, MOTION, PERCEPTION, PSI3D)

    def units() -> list[WorkUnit]:
        frames, _ = usable_frames(inputs[0] / "frames.parquet", inputs[1])
        return units_of("views", [frame["key"] for frame in frames], params.render_views.shard_size)

    index = partial(
        write_index, folder / "shards", folder / NAME, partial(failed_measures, params.render_views)
    )
    return Plan(units, partial(ViewRenderer, params, *map(Path.resolve, inputs)), tables=index)


def _heads(params: Params, folder: Path) -> Plan:
    inputs = (LABELS, GENHEAD)
    section = params.render_genhead

    def units() -> list[WorkUnit]:
        return units_of("heads", list(range(section.heads)), section.shard_size)

    return Plan(units, partial(HeadRenderer, params, *map(Path.resolve, inputs)))


def _faces(params: Params, folder: Path) -> Plan:
    settings, image = params.ingest, params.networks.image
    generated = settings.source == "generated"
    inputs = [
        GENERATED / name if generated else Path(getattr(settings, name)) for name in ("portraits", "clips")
    ]

    def units() -> list[WorkUnit]:
        portraits, clips = (
            pq.read_table(folder / f"{name}.parquet", columns=["file"])["file"].to_pylist()
            for name in ("portraits", "clips")
        )
        return units_of("portraits", portraits, settings.shard_size) + units_of("clips", clips, 1)

    worker = partial(Ingester, settings, image, *map(Path.resolve, inputs))
    return Plan(units, worker, everything=partial(ingest, settings, image, params.machine, *inputs, folder))


PLANS = {kinds.VIEWS.name: _views, kinds.GENHEAD.name: _heads, kinds.INGEST.name: _faces}
