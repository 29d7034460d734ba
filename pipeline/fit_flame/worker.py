"""Fitting the head model to clips as units of work.

They are resumable, and any number of processes makes the same bytes. A unit is a chunk of whole clips that
are solved together (`solver.chunks`). Its shard, of samples FittedClip, stays in the scratch folder.
"""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.config.params import FitFlame, Params
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.run import run_units
from pipeline.engine.scratch import scratch_folder
from pipeline.engine.work_unit import WorkUnit
from pipeline.fit_flame.landmark_model import LandmarkModel
from pipeline.fit_flame.solver import chunks, fit_chunk
from pipeline.geometry import head_model
from pipeline.geometry.label import Label
from pipeline.geometry.landmarks import landmarks_70
from pipeline.store.samples import FittedClip
from pipeline.store.shards import Sample, ShardReader
from pipeline.store.tables import MESH, read_rows, usable

FRAME_BYTES = 4 * Label.SIZE + 8  # a label and an error


class ClipFitter:
    """The worker of one process: a unit's items are keys of clips. It reads the landmarks of these alone."""

    def __init__(
        self,
        settings: FitFlame,
        model: str,
        frames: Path,
    ) -> None:
        self.settings = settings
        self.frames = frames
        head = head_model.load(model)
        self.model = LandmarkModel(head)
        # The numbers of the rows of each clip, in the order of time.
        rows = read_rows(frames, "ingest", ["clip", "index", "status"])
        for number, row in enumerate(rows):
            row["number"] = number
        self.rows: dict[str, list[int]] = {}
        in_time = sorted(usable(rows), key=lambda row: row["index"])
        for row in in_time:
            of_clip = self.rows.setdefault(row["clip"], [])
            of_clip.append(row["number"])

    def __call__(self, unit: WorkUnit) -> tuple[Iterator[Sample], dict[str, Any]]:
        clips = list(unit.items)
        return self._samples(clips), {}

    def _samples(self, clips: list[str]) -> Iterator[Sample]:
        persons: list[str] = []
        rows: list[int] = []
        for clip in clips:
            persons += [clip] * len(self.rows[clip])
            rows += self.rows[clip]
        points = landmarks_70(self._landmarks(rows))
        result = fit_chunk(self.model, points, persons, self.settings)
        stop = 0
        for clip in clips:
            start = stop
            stop = start + len(self.rows[clip])
            sample = FittedClip.encode(
                label=result.labels[start:stop],
                error=result.errors[start:stop],
            )
            yield clip, sample

    def _landmarks(self, rows: list[int]) -> np.ndarray:
        """The meshes (N, 478, 3) float64 of rows of the table.

        Only the row groups that hold them are read.
        """
        file = pq.ParquetFile(self.frames)
        groups = range(file.num_row_groups)
        sizes = [file.metadata.row_group(group).num_rows for group in groups]
        starts = np.cumsum([0, *sizes])
        group_of = np.searchsorted(starts, rows, side="right") - 1
        meshes = np.empty((len(rows), MESH, 3))
        for group in np.unique(group_of).tolist():
            table = file.read_row_group(group, columns=["landmarks"])
            column = table["landmarks"]
            first = int(starts[group])
            for place in np.flatnonzero(group_of == group):
                cell = column[rows[place] - first]
                numbers = cell.values.to_numpy()
                meshes[place] = numbers.reshape(MESH, 3)
        return meshes


def fit_clips(
    params: Params,
    frames: Path,
    clips: list[str],
) -> Iterator[tuple[tuple[np.ndarray, float] | None, str]]:
    """The label (437,) and the error of every accepted frame of the table `frames`, by clip and time.

    None and a reason for those of a clip that was given up. `clips` names the clip of each, in that order.
    """
    mark = fingerprint(__file__, params.fit_flame, params.flame, frames)
    scratch = scratch_folder("fit_flame_vfhq", mark)
    fitter = partial(
        ClipFitter,
        params.fit_flame,
        params.flame.model,
        frames.resolve(),
    )
    names = list(dict.fromkeys(clips))
    done = run_units(
        _units(clips),
        fitter,
        scratch,
        params.machine,
        "fit_flame_vfhq",
        {"clips": 1},
        FRAME_BYTES * len(clips) / len(names),
    )
    reasons = {reject.item: reject.reason for unit in done for reject in unit.rejects}
    reader = ShardReader(scratch)
    for clip in names:
        if clip in reasons:
            given_up = (None, reasons[clip])
            yield from [given_up] * clips.count(clip)
            continue
        sample = reader.read(clip)
        labels = FittedClip.label.array(sample)
        errors = FittedClip.error.array(sample)
        for label, error in zip(labels, errors, strict=True):
            yield (label, float(error)), ""
    shutil.rmtree(scratch, ignore_errors=True)


def _units(clips: list[str]) -> list[WorkUnit]:
    # The chunks are those of a fit in one process: the number of workers must not change what is solved
    # together.
    units = []
    ranges = chunks(clips, len(clips))
    for number, (start, stop) in enumerate(ranges):
        items = list(dict.fromkeys(clips[start:stop]))
        units.append(WorkUnit(f"clips-{number:06d}", items))
    return units
