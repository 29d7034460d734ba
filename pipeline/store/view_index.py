"""The index of a multi-view cache: a row for every frame, with its place in the shards, cameras and quality.

`offset` and `size` (bytes) are those of the sample in its tar. Its fields follow each other in alphabetical
order, named once in the metadata of the schema, beside the number of the format. Each has a tar header of
512 bytes before it and is padded to 512, so `sizes` and `crcs` say all about them. `cameras` are the (1 +
N) x 25 numbers of `cameras.npy`. `kept` says whether the frame may be trained on; `reason` names the
measures of quality that it fails. All but the last two follows from the shards alone.

Opening reads three columns. Places come with the first frame that is read of their row group and stay: some
130 bytes for a frame of 4 views.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.core.errors import UserError
from pipeline.core.files import replacing
from pipeline.store.codecs import plain_name
from pipeline.store.samples import CAMERA, Views
from pipeline.store.shards import (
    BLOCK,
    FORMAT,
    Place,
    check_format,
    damage,
    damaged_field,
    padded,
    read_fields,
    read_sidecar,
)
from pipeline.store.storage import Storage

NAME = "index.parquet"
QUALITY = ("psnr", "coverage", "identity")
COLUMNS = {
    "key": pa.string(),
    "clip": pa.string(),
    "split": pa.string(),
    "index": pa.int64(),
    "shard": pa.string(),
    "offset": pa.int64(),
    "size": pa.int64(),
    "sizes": pa.list_(pa.uint32()),
    "crcs": pa.list_(pa.uint32()),
    "cameras": pa.list_(pa.float32()),
    **dict.fromkeys(QUALITY, pa.float32()),
}
VERDICT = {"kept": pa.bool_(), "reason": pa.string()}  # what no shard knows
SCHEMA = pa.schema(COLUMNS | VERDICT)
PLACES = ["shard", "offset", "sizes", "crcs"]
ROW_GROUP = 1 << 14
FEWEST_FRAMES = 2  # of a clip that is trained on: a source and a driving frame
GAP = 1 << 16  # bytes between two fields for which it is not worth to read twice

Judge = Callable[[Mapping[str, float]], str]  # from a frame's quality to what is wrong with it


def shard_rows(shard: Path) -> tuple[list[str], pa.Table]:
    """The names of the fields and the rows of a shard, read from it and its sidecar.

    The rows lack `kept` and `reason`. Raises UserError when something of it is damaged or its samples do
    not have the same fields.
    """
    _, members = read_sidecar(shard, Views.stage)
    columns: dict[str, list] = {name: [] for name in COLUMNS}
    names = list(next(iter(members.values()), {}))
    needed = {Views.cameras.file, Views.frame.file}
    for key, places in members.items():
        if list(places) != names or not needed <= places.keys():
            raise UserError(
                f"{shard}: the fields of the sample {key} are not those of a multi-view cache. "
                f"Make it again: dvc repro {Views.stage}."
            )
        row = _row(shard, key, places)
        for name, column in columns.items():
            column.append(row[name])
    return names, pa.table(columns, pa.schema(COLUMNS))


def _row(
    shard: Path,
    key: str,
    places: Mapping[str, Place],
) -> dict[str, Any]:
    """The row of a sample, from its own facts and from the places of its fields."""
    told = {name: places[name] for name in (Views.cameras.file, Views.frame.file)}
    sample = read_fields(shard, key, told)
    # Fields follow each other in the tar, so that the first and the last tell where the sample is.
    offsets, sizes, crcs = zip(*places.values(), strict=True)
    start = offsets[0] - BLOCK
    stop = offsets[-1] + padded(sizes[-1])
    row = {
        "key": key,
        "shard": shard.name,
        "offset": start,
        "size": stop - start,
        "sizes": sizes,
        "crcs": crcs,
        "cameras": Views.cameras.array(sample).ravel(),
    }
    return row | Views.frame.facts(sample)


def schema_of(fields: list[str]) -> pa.Schema:
    """The schema of an index whose samples have these fields."""
    return SCHEMA.with_metadata({"fields": json.dumps(fields), "format": str(FORMAT)})


def fields_of(schema: pa.Schema) -> list[str]:
    """The names of the fields of a sample, from the metadata of an index; none where it has none."""
    return json.loads((schema.metadata or {}).get(b"fields", b"[]"))


def format_of(schema: pa.Schema) -> int | None:
    """The number of the format of an index; None where it has none."""
    # Metadata of Parquet are bytes, which another writer may have filled with anything.
    found = (schema.metadata or {}).get(b"format", b"")
    return int(found) if found.isdigit() else None


def write_index(shards: Path, out: Path, judge: Judge) -> pa.Table:
    """Write the index of all shards of a folder to `out` in one step.

    Returns its rows without places and cameras. `judge` says of a frame's quality why it must not be
    trained on, "" when it may. Raises UserError as `shard_rows`, when shards have different fields, and
    when the place cannot be written.
    """
    # Shards by name and samples as written: equal shards make an equal index.
    paths = sorted(shards.glob("*.tar"))
    if not paths:
        raise UserError(f"there is no shard (*.tar) in {shards}. Make them: dvc repro {Views.stage}.")
    fields, _ = shard_rows(paths[0])
    schema = schema_of(fields)
    told, waiting = [], []
    with replacing(out) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for shard in paths:
            names, rows = shard_rows(shard)
            if names != fields:
                raise UserError(
                    f"{shard}: its samples have other fields than those of {paths[0].name}. "
                    f"Make them again: dvc repro {Views.stage}."
                )
            judged = _judged(rows, judge)
            waiting.append(judged)
            told.append(judged.drop_columns(["cameras", "sizes", "crcs"]))
            # A row group spans many shards: a reader reads whole ones, and few large reads beat many small
            # ones.
            count = sum(len(table) for table in waiting)
            if count >= ROW_GROUP or shard == paths[-1]:
                table = pa.concat_tables(waiting).cast(writer.schema)
                writer.write_table(table, ROW_GROUP)
                waiting = []
    return pa.concat_tables(told)


def _judged(rows: pa.Table, judge: Judge) -> pa.Table:
    """The rows with `kept` and `reason`."""
    reasons = [judge(quality) for quality in rows.select(QUALITY).to_pylist()]
    kept = [not reason for reason in reasons]
    rows = rows.append_column("kept", pa.array(kept, pa.bool_()))
    return rows.append_column("reason", pa.array(reasons, pa.string()))


def disagreements(index: pa.Table, rows: pa.Table) -> Iterator[tuple[str, str]]:
    """(key, column) wherever `index` differs from `rows`, which have the same keys in the same order."""
    keys = rows["key"].to_pylist()
    for name in rows.column_names:
        said, wanted = index[name].combine_chunks(), rows[name].combine_chunks()
        # Whole columns are compared first: lists of Python are slow, and most columns agree.
        if said.equals(wanted):
            continue
        for key, mine, other in zip(keys, said.to_pylist(), wanted.to_pylist(), strict=True):
            if mine != other:
                yield key, name


@dataclass(frozen=True)
class Places:
    """The places of the frames of one row group."""

    shards: np.ndarray  # (n,) str
    offsets: np.ndarray  # (n,) int64, of the first byte of the samples
    sizes: np.ndarray  # (n, F) uint32
    crcs: np.ndarray  # (n, F) uint32


class ViewIndex:
    """A multi-view cache, opened by its index; frames are row numbers.

    `address` is a folder or whatever fsspec knows.
    """

    def __init__(self, address: str | Path):
        """Raises UserError when the index is missing or damaged, OlderFormat when it is of another format."""
        self.storage = Storage(address)
        try:
            # The footer alone is read: schema, metadata and where the columns of every row group lie.
            with self.storage.open(NAME) as file:
                self._facts = pq.ParquetFile(file).metadata
            schema = self._facts.schema.to_arrow_schema()
        except (pa.ArrowException, OSError) as error:
            raise self._damaged() from error
        check_format(format_of(schema), f"{self.storage}/{NAME}", Views.stage)
        self.fields = fields_of(schema)
        if not self.fields or not set(SCHEMA.names) <= set(schema.names):
            raise self._damaged()
        count = self._facts.num_row_groups
        lengths = [self._facts.row_group(group).num_rows for group in range(count)]
        self._starts = np.cumsum([0, *lengths])
        self._places: dict[int, Places] = {}
        self._number = {name: number for number, name in enumerate(self.fields)}
        # A picture may be asked for without knowing its codec.
        for number, name in enumerate(self.fields):
            self._number.setdefault(plain_name(name), number)

    def __len__(self) -> int:
        return self._facts.num_rows

    @property
    def views(self) -> int:
        """The number of pseudo views of a frame."""
        return sum(name.startswith("view") for name in self.fields)

    def columns(
        self,
        names: Collection[str],
        groups: Collection[int] | None = None,
    ) -> pa.Table:
        """Whole columns, or only some row groups of them; texts are dictionaries, but for keys."""
        texts = [name for name in ("clip", "split", "shard", "reason") if name in names]
        try:
            with self.storage.open(NAME) as file:
                parquet = pq.ParquetFile(file, metadata=self._facts, read_dictionary=texts)
                if groups is None:
                    return parquet.read(list(names))
                return parquet.read_row_groups(list(groups), list(names))
        except (pa.ArrowException, OSError) as error:
            raise self._damaged() from error

    def _damaged(self) -> UserError:
        return UserError(f"{self.storage}/{NAME} is damaged. Make it again: dvc repro {Views.stage}.")

    def clips(self, split: str) -> tuple[dict[str, np.ndarray], int]:
        """The kept frames of each clip of `split` by its name, and how many frames are not kept.

        The frames of a clip are in their order.
        """
        table = self.columns(["clip", "split", "kept"])
        names, clip = _codes(table["clip"])
        splits, part = _codes(table["split"])
        mine = np.zeros(len(clip), bool)
        if split in splits:
            mine = part == splits.index(split)
        kept = table["kept"].to_numpy() & mine
        left_out = int(mine.sum() - kept.sum())
        # A cache of paper scale has millions of rows: they are grouped by sorting, not one by one.
        frames = np.flatnonzero(kept)
        frames = frames[np.argsort(clip[frames], kind="stable")]
        if not names:
            return {}, left_out
        counts = np.bincount(clip[frames], minlength=len(names))
        bounds = np.cumsum(counts)[:-1]
        grouped = zip(names, np.split(frames, bounds), strict=True)
        return {name: rows for name, rows in grouped if len(rows)}, left_out

    def key(self, frame: int) -> str:
        """The key of a frame: what its files in the tar begin with."""
        group, row = self._where(frame)
        return self.columns(["key"], [group])["key"][row].as_py()

    def read(self, frame: int, names: Collection[str]) -> dict[str, bytes]:
        """Fields of a frame by their names in the shard, with one read for those that lie near each other.

        Raises UserError that names shard, sample and field for one that is cut short or altered.
        """
        group, row = self._where(frame)
        places = self._load(group)
        sizes = places.sizes[row].tolist()
        crcs = places.crcs[row].tolist()
        starts = _starts(int(places.offsets[row]), sizes)
        numbers = sorted(self._number[name] for name in names)
        spans, parts = _spans(numbers, starts, sizes)
        shard = f"shards/{places.shards[row]}"
        # Every field is checked: what comes from a disk or a server may be altered.
        blocks = self.storage.read(shard, spans)
        found = {}
        for number, span in zip(numbers, parts, strict=True):
            first = starts[number] - spans[span][0]
            data = blocks[span][first : first + sizes[number]]
            if what := damage(data, sizes[number], crcs[number]):
                path = f"{self.storage}/{shard}"
                raise damaged_field(
                    path,
                    self.fields[number],
                    self.key(frame),
                    what,
                )
            found[self.fields[number]] = data
        return found

    def _where(self, frame: int) -> tuple[int, int]:
        """The row group of a frame, and its row there."""
        group = int(np.searchsorted(self._starts, frame, "right")) - 1
        return group, frame - int(self._starts[group])

    def _load(self, group: int) -> Places:
        # Kept once read: training comes back to every row group, and an address answers slowly.
        if group not in self._places:
            table = self.columns(PLACES, [group]).combine_chunks()
            names, codes = _codes(table["shard"])
            shape = (len(table), len(self.fields))
            self._places[group] = Places(
                shards=np.array(names, object)[codes],
                offsets=table["offset"].to_numpy(),
                sizes=flat_column(table, "sizes").reshape(shape),
                crcs=flat_column(table, "crcs").reshape(shape),
            )
        return self._places[group]

    def cameras(self) -> np.ndarray:
        """The cameras of all frames, (frames, 1 + N, 25) float32; row 0 belongs to the real frame."""
        numbers = flat_column(self.columns(["cameras"]), "cameras")
        return numbers.reshape(len(self), -1, CAMERA)

    def own_cameras(self) -> np.ndarray:
        """Those of the real frames alone, (frames, 25); the others are in memory a row group at a time."""
        own = np.empty((len(self), CAMERA), np.float32)
        for group, (start, stop) in enumerate(pairwise(self._starts.tolist())):
            numbers = flat_column(self.columns(["cameras"], [group]), "cameras")
            own[start:stop] = numbers.reshape(stop - start, -1, CAMERA)[:, 0]
        return own


def flat_column(table: pa.Table, name: str) -> np.ndarray:
    """The numbers of a column of lists, one after the other."""
    return pc.list_flatten(table[name]).to_numpy()


def _starts(offset: int, sizes: list[int]) -> list[int]:
    """Where in a tar the fields begin, with these sizes, of a sample that begins at `offset`."""
    starts = []
    for size in sizes:
        starts.append(offset + BLOCK)
        offset += BLOCK + padded(size)
    return starts


def _spans(
    numbers: list[int], starts: list[int], sizes: list[int]
) -> tuple[list[tuple[int, int]], list[int]]:
    """The spans of bytes to read for the fields with these numbers, and which of them each field is in.

    Fields that lie near each other share one, as a request to a server costs more than some bytes.
    """
    spans: list[tuple[int, int]] = []
    parts = []
    for number in numbers:
        if not spans or starts[number] - spans[-1][1] > GAP:
            spans.append((starts[number], starts[number]))
        # A field that is near belongs to the last span, which ends with it now.
        first, _ = spans[-1]
        spans[-1] = (first, starts[number] + sizes[number])
        parts.append(len(spans) - 1)
    return spans, parts


def _codes(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The texts of a dictionary column and which of them each row has."""
    chunks = column.unify_dictionaries().chunks
    if not chunks:
        return [], np.zeros(0, np.int32)
    codes = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in chunks]
    return chunks[0].dictionary.to_pylist(), np.concatenate(codes)
