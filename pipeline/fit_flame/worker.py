"""Fitting the head model to people as units of work: to clips, and to portraits.

They are resumable, and any number of processes makes the same bytes. A unit is one clip, or a bucket of
people with photos that are solved together, so that others that come change none. Its shard, of samples
FittedClip, lies with the finished units of the stage.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.params import FitFlame, Machine, Params
from pipeline.core.errors import UserError
from pipeline.engine.fingerprint import code_fingerprint, inputs_fingerprint
from pipeline.engine.job import Job
from pipeline.engine.scratch import keep, scratch_folder
from pipeline.engine.work_unit import WorkUnit, buckets
from pipeline.fit_flame.landmark_model import LandmarkModel
from pipeline.fit_flame.solver import CHUNK, fit_chunk
from pipeline.geometry import head_model
from pipeline.geometry.label import Label
from pipeline.geometry.landmarks import landmarks_70
from pipeline.store.samples import Aligned, FittedClip
from pipeline.store.shards import Sample, ShardReader
from pipeline.store.tables import MESH, OK, matrix, photographed, read_columns, row_sums

PORTRAITS, FRAMES = ITEMS = ("ffhq", "vfhq")  # the parts of the stage
FEW_FACES = 2000  # about ten seconds of one process
FACE_BYTES = 4 * Label.SIZE + 8  # a label and an error
# The table of each item, and what it says of a face.
COLUMNS = {
    PORTRAITS: ("portraits", ["key", "status"]),
    FRAMES: ("frames", ["key", "status", "clip", "split"]),
}


@dataclass(frozen=True)
class Faces:
    """The accepted faces of a table of ingest, those of a person one after the other and in time."""

    path: Path
    rows: pa.Table  # key and, of frames, clip and split
    numbers: np.ndarray  # of their rows in the table
    persons: list[str]  # who each shows: a clip, a portrait, or whom a folder of portraits names

    def ranges(self) -> dict[str, range]:
        """The faces of each person."""
        found, start = {}, 0
        for person, faces in groupby(self.persons):
            stop = start + sum(1 for _ in faces)
            found[person] = range(start, stop)
            start = stop
        return found


def accepted_faces(ingested: Path, item: str) -> Faces:
    """The faces of ingest for an item of the stage. Raises UserError when it accepted none."""
    name, columns = COLUMNS[item]
    path = ingested / f"{name}.parquet"
    # Landmarks would not fit into memory at paper scale: each worker reads those of its people.
    order = ["clip", "index"] if item == FRAMES else []
    rows = read_columns(path, Aligned.stage, list(dict.fromkeys([*columns, *order])))
    rows = rows.append_column("number", pa.array(np.arange(len(rows))))
    rows = rows.filter(pc.field("status") == OK)
    if not len(rows):
        raise UserError(
            f"fit_flame: {path} has no face that ingest accepted. "
            "Look into its column `reason` for what was rejected and why."
        )
    person = rows["clip" if item == FRAMES else "key"]
    if item == PORTRAITS and (people := photographed(ingested)):
        person = pa.array([people[key] for key in rows["key"].to_pylist()])
        order = ["person", "key"]
    rows = rows.append_column("person", person)
    if order:
        rows = rows.sort_by([(name, "ascending") for name in (*order, "number")])
    # A dictionary, so that two million frames share ten thousand strings.
    codes = rows["person"].combine_chunks().dictionary_encode()
    names = codes.dictionary.to_pylist()
    persons = [names[code] for code in codes.indices.to_numpy()]
    return Faces(path, rows, rows["number"].to_numpy(), persons)


def item_settings(settings: FitFlame, ingested: Path, item: str) -> FitFlame:
    """The settings of the fit: photos of a person follow each other in no time that would be smooth."""
    if item == PORTRAITS and photographed(ingested):
        return settings.model_copy(update={"temporal_weight": 0.0})
    return settings


class Fitter:
    """The worker of one process: a unit's items are people. It reads the landmarks of these alone."""

    def __init__(
        self,
        settings: FitFlame,
        model: str,
        ingested: Path,
        item: str,
    ) -> None:
        self.settings = item_settings(settings, ingested, item)
        head = head_model.load(model)
        self.model = LandmarkModel(head)
        self.faces = accepted_faces(ingested, item)
        self.ranges = self.faces.ranges()

    def __call__(self, unit: WorkUnit) -> tuple[Iterator[Sample], dict[str, Any]]:
        return self._samples(list(unit.items)), {}

    def _samples(self, people: list[str]) -> Iterator[Sample]:
        persons: list[str] = []
        faces: list[int] = []
        for person in people:
            own = self.ranges[person]
            persons += [person] * len(own)
            faces += own
        points = landmarks_70(self._landmarks(self.faces.numbers[faces]))
        result = fit_chunk(self.model, points, persons, self.settings)
        stop = 0
        for person in people:
            own = self.ranges[person]
            start, stop = stop, stop + len(own)
            sample = FittedClip.encode(
                label=result.labels[start:stop],
                error=result.errors[start:stop],
            )
            yield _key(self.faces, own), sample

    def _landmarks(self, rows: np.ndarray) -> np.ndarray:
        """The meshes (N, 478, 3) float64 of rows of the table.

        Only the row groups that hold them are read.
        """
        file = pq.ParquetFile(self.faces.path)
        groups = range(file.num_row_groups)
        sizes = [file.metadata.row_group(group).num_rows for group in groups]
        starts = np.cumsum([0, *sizes])
        group_of = np.searchsorted(starts, rows, side="right") - 1
        meshes = np.empty((len(rows), MESH, 3))
        for group in np.unique(group_of).tolist():
            table = file.read_row_group(group, columns=["landmarks"])
            mine = np.flatnonzero(group_of == group)
            found = table.take(rows[mine] - int(starts[group]))
            meshes[mine] = matrix(found, "landmarks").reshape(-1, MESH, 3)
        return meshes


def fit_people(
    params: Params,
    ingested: Path,
    item: str,
    faces: Faces,
) -> Iterator[tuple[range, tuple[np.ndarray, np.ndarray] | str]]:
    """Of each person the faces, and their labels (F, 437) and errors (F,).

    In place of these the reason why the person was given up.
    """
    ranges = faces.ranges()
    job = Job(
        label=f"fit_flame_{item}",
        units=_units(params, ingested, item, faces),
        make_worker=partial(
            Fitter,
            params.fit_flame,
            params.flame.model,
            ingested.resolve(),
            item,
        ),
        counts={"clips" if item == FRAMES else "people": 1},
        item_bytes=FACE_BYTES * len(faces.persons) / len(ranges),
    )
    scratch = scratch_folder(job.label, job.mark)
    done = job.run(scratch, _workers(params, faces))
    reasons = {reject.item: reject.reason for unit in done for reject in unit.rejects}
    reader = ShardReader(scratch)
    for person, own in ranges.items():
        if person in reasons:
            yield own, reasons[person]
            continue
        sample = reader.read(_key(faces, own))
        yield own, (FittedClip.label.array(sample), FittedClip.error.array(sample))
    keep(scratch)


def _workers(params: Params, faces: Faces) -> Machine:
    """As params say, but for so few faces that one process is done before Ray has started."""
    if len(faces.persons) > FEW_FACES:
        return params.machine
    return params.machine.model_copy(update={"workers": 0})


def _key(faces: Faces, own: range) -> str:
    """The key of the sample of a person: that of the first face."""
    return faces.rows["key"][own.start].as_py()


def _units(
    params: Params,
    ingested: Path,
    item: str,
    faces: Faces,
) -> list[WorkUnit]:
    """A unit for each clip, or for each bucket of people: the number of workers must not change them."""
    ranges = faces.ranges()
    people = {f"clips-{clip}": [clip] for clip in ranges}
    by, columns = "clip", ["index", "status", "landmarks"]
    if item == PORTRAITS:
        people = {f"people-{number:06d}": names for number, names in buckets(ranges, CHUNK).items()}
        by, columns = "key", ["status", "landmarks"]
    rows = row_sums(faces.path, Aligned.stage, by, columns)
    settings = item_settings(params.fit_flame, ingested, item)
    common = inputs_fingerprint(settings, params.flame)
    code = code_fingerprint(__file__)
    groups = faces.rows[by].to_pylist()
    units = []
    for name, persons in people.items():
        own = []
        for person in persons:
            named = dict.fromkeys(groups[face] for face in ranges[person])
            own.append([person, [rows[group] for group in named]])
        units.append(WorkUnit(name, persons, inputs_fingerprint(common, own), code))
    return units
