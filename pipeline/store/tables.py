"""Tables on disk, and what they hold.

Those of `ingest` have a row for every portrait, clip and frame, those of `fit_flame` for every face that
ingest accepted; the rejected ones are among them, with a reason.
"""

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.core.errors import UserError
from pipeline.core.files import replacing

ROW_GROUP = 1 << 13  # rows of a table that are read together: a worker wants those of a few clips only
MESH = 478  # points of the face mesh
OK = "ok"  # the status of what can be used; everything else is rejected, with a reason

_TEXT = pa.string()
_INT = pa.int32()
_FLOATS = pa.list_(pa.float32())
_STATE = {"status": _TEXT, "reason": _TEXT}
_FACE = {
    "box": _FLOATS,
    "score": pa.float32(),
    "landmarks": _FLOATS,
    "crop": _FLOATS,
    "outside": pa.float32(),  # the share of the head beyond the edge of its picture
    "shard": _TEXT,
}
PORTRAITS = pa.schema(
    {
        "key": _TEXT,
        "file": _TEXT,
        **_STATE,
        "width": _INT,
        "height": _INT,
        **_FACE,
    }
)
CLIPS = pa.schema(
    {
        "key": _TEXT,
        "file": _TEXT,
        "split": _TEXT,
        **_STATE,
        "fps": pa.float64(),
        "frames_declared": _INT,
        "frames_decoded": _INT,
        "frames_ok": _INT,
        "width": _INT,
        "height": _INT,
        "seconds": pa.float64(),
    }
)
FRAMES = pa.schema(
    {
        "key": _TEXT,
        "clip": _TEXT,
        "index": _INT,
        "seconds": pa.float64(),
        "split": _TEXT,
        **_STATE,
        **_FACE,
    }
)

PEOPLE = pa.schema({"key": _TEXT, "person": _TEXT})  # whom a photo shows, where a user says it
LABELS = pa.schema(
    {
        "key": _TEXT,
        "clip": _TEXT,
        "split": _TEXT,
        **_STATE,
        "label": _FLOATS,
        "error": pa.float32(),  # of the landmarks, interocular distances
    }
)

# What is true of generated people, which only evaluation may look at.
_TRUTH = {"camera": _FLOATS, "label": _FLOATS, "landmarks": _FLOATS}
TRUE_IDENTITIES = pa.schema({"identity": _TEXT, "z": _FLOATS})
TRUE_PORTRAITS = pa.schema({"file": _TEXT, "identity": _TEXT, **_TRUTH})
TRUE_FRAMES = pa.schema(
    {
        "file": _TEXT,
        "clip": _TEXT,
        "index": pa.int64(),
        "identity": _TEXT,
        "split": _TEXT,
        **_TRUTH,
        "extra": _FLOATS,  # what the head model has no number for
    }
)


@dataclass(frozen=True)
class Rows:
    """Rows that are still being collected, and the schema of the table that they become."""

    schema: pa.Schema
    rows: list[dict[str, Any]] = field(default_factory=list)

    def table(self) -> pa.Table:
        """The table of the rows so far; a column that a row has no value for is null there."""
        return pa.Table.from_pylist(self.rows, self.schema)


def write_table(path: str | Path, table: pa.Table) -> Path:
    """Write a Parquet table in one step. Raises UserError when the place cannot be written."""
    return write_parts(path, table.schema, [table])


def write_parts(path: str | Path, schema: pa.Schema, parts: Iterable[pa.Table]) -> Path:
    """Write tables below one another as one Parquet table, in one step.

    A row group of them is in memory at a time, and the file does not show where a part ends. Raises
    UserError when the place cannot be written.
    """
    with replacing(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        waiting = schema.empty_table()
        for part in parts:
            waiting = pa.concat_tables([waiting, part])
            while len(waiting) >= ROW_GROUP:
                writer.write_table(waiting.slice(0, ROW_GROUP), row_group_size=ROW_GROUP)
                waiting = waiting.slice(ROW_GROUP)
        if len(waiting):
            writer.write_table(waiting, row_group_size=ROW_GROUP)
    return Path(path)


def read_rows(
    path: str | Path,
    stage: str,
    columns: Collection[str] | None = None,
) -> list[dict[str, Any]]:
    """The rows of a table that `stage` makes.

    Raises UserError when the table is missing or damaged or lacks a column.
    """
    return read_columns(path, stage, columns).to_pylist()


def read_columns(
    path: str | Path,
    stage: str,
    columns: Collection[str] | None = None,
    wanted: pc.Expression | None = None,
) -> pa.Table:
    """The same as Arrow columns, which take a tenth of the memory; `wanted` filters the rows."""
    with _told(path, stage):
        return pq.read_table(path, columns=columns and list(columns), filters=wanted)


def read_batches(
    path: str | Path,
    stage: str,
    columns: Collection[str],
) -> Iterator[pa.RecordBatch]:
    """Columns of a table piece by piece, for those that do not fit into memory. Raises as `read_rows`."""
    with _told(path, stage):
        yield from pq.ParquetFile(path).iter_batches(ROW_GROUP, columns=list(columns))


class RowGroups:
    """Rows of a table by their keys, for a worker that comes back for others.

    A row group is read as a whole and the last two are kept, as those of a clip lie together: a table of
    paper scale does not fit into memory, and one that is small is read once.
    """

    def __init__(self, path: str | Path, stage: str, columns: Collection[str]) -> None:
        """`columns` are read, `key` among them. Raises UserError when the table is missing or damaged."""
        self.path, self.stage, self.columns = path, stage, list(columns)
        with _told(path, stage):
            self._file = pq.ParquetFile(path)
            groups = range(self._file.num_row_groups)
            self._ranges = [self._keys_of(group) for group in groups]
        self._kept: dict[int, pa.Table] = {}

    def rows(self, keys: Collection[str]) -> dict[str, dict[str, Any]]:
        """The rows with these keys, as far as there are any. Raises UserError for a damaged table."""
        found = {}
        wanted = pa.array(sorted(keys), pa.string())
        for group, (first, last) in enumerate(self._ranges):
            if any(first <= key <= last for key in keys):
                rows = self._read(group)
                rows = rows.filter(pc.is_in(rows["key"], wanted))
                found |= {row["key"]: row for row in rows.to_pylist()}
        return found

    def _keys_of(self, group: int) -> tuple[str, str]:
        """The first and the last key of a row group in alphabetical order."""
        keys = self._file.read_row_group(group, ["key"])["key"]
        ends = pc.min_max(keys).as_py()
        return ends["min"], ends["max"]

    def _read(self, group: int) -> pa.Table:
        if group not in self._kept:
            with _told(self.path, self.stage):
                table = self._file.read_row_group(group, self.columns)
            # The older one of two goes.
            while len(self._kept) > 1:
                del self._kept[next(iter(self._kept))]
            self._kept[group] = table
        return self._kept[group]


@contextlib.contextmanager
def _told(path: str | Path, stage: str) -> Iterator[None]:
    """Say in words what is wrong with a table."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing. Run the stage {stage}: dvc repro.") from error
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is damaged: {error}. Make it again: dvc repro {stage}.") from error


def matrix(rows: pa.Table | pa.RecordBatch, column: str) -> np.ndarray:
    """The numbers of a column of lists of one length, (rows, length).

    Raises UserError when the lists have several lengths.
    """
    flat = pc.list_flatten(rows[column])
    if len(flat) % max(len(rows), 1):
        raise UserError(f"the lists in the column {column} of a table have several lengths.")
    numbers = flat.to_numpy(zero_copy_only=False) if isinstance(flat, pa.Array) else flat.to_numpy()
    # Of no rows NumPy cannot tell how long they are.
    return numbers.reshape(len(rows), -1 if len(rows) else 0)


def photographed(ingested: Path) -> dict[str, str]:
    """Whom the portraits show, by key: what their folders say. Without ingest.people: folder it is empty."""
    path = ingested / "people.parquet"
    if not path.exists():
        return {}
    return {row["key"]: row["person"] for row in read_rows(path, "ingest")}


def row_sums(
    path: str | Path,
    stage: str,
    by: str,
    columns: Collection[str],
) -> dict[str, str]:
    """A checksum of the rows with each value of the column `by`, in hexadecimal.

    It is of the values alone, not of how the file holds them. A part of the table is in memory at a time.
    Raises UserError as `read_rows`.
    """
    # A sum for each column, or it would depend on where a batch ends.
    sums = {name: defaultdict(hashlib.sha256) for name in sorted(columns)}
    for batch in read_batches(path, stage, {by, *columns}):
        groups = batch[by].to_pylist()
        for name, column_sums in sums.items():
            for group, value in zip(groups, _bytes_of(batch[name]), strict=True):
                column_sums[group].update(value)
    whole: dict[str, str] = {}
    for column_sums in sums.values():
        for group, found in column_sums.items():
            whole[group] = whole.get(group, "") + found.hexdigest()
    return {group: hashlib.sha256(text.encode()).hexdigest() for group, text in whole.items()}


def _bytes_of(column: pa.Array) -> Iterator[bytes]:
    """Bytes of each value of a column; a list of numbers as it lies in memory, as there may be thousands."""
    if not pa.types.is_list(column.type):
        yield from (f"{value!r};".encode() for value in column.to_pylist())
        return
    numbers = column.values.to_numpy(zero_copy_only=False)
    bounds = column.offsets.to_numpy()
    for start, stop in pairwise(bounds):
        yield f"{stop - start};".encode() + numbers[start:stop].tobytes()


def usable(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The rows that were not rejected."""
    return [row for row in rows if row["status"] == OK]


def meshes(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The face meshes of rows with `landmarks`, (N, 478, 3) float32: fractions of the image, and depth."""
    flat = np.array([row["landmarks"] for row in rows], np.float32)
    return flat.reshape(len(rows), MESH, 3)


def labels_of(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The labels of rows with `label`, (N, 437) float32."""
    return np.array([row["label"] for row in rows], np.float32)
