"""What the units of the stage found, brought together for its tables and metrics.

Rows with landmarks stay Arrow tables from the worker to the published file: at paper scale there are millions
of them, and as Python's numbers the landmarks of one frame take 40 kilobytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.core.files import key_of
from pipeline.engine.work_unit import Done, tables_of
from pipeline.ingest.report import REJECTED, Row
from pipeline.store.tables import PORTRAITS

# The prefix of the names of a kind's units, which is also what its table or row is called in their records.
PORTRAIT_UNITS, CLIP_UNITS, FRAME_ROWS = "portraits", "clips", "frames"


def portrait_table(done: Sequence[Done], scratch: Path) -> pa.Table:
    """The rows of all portraits by file, PORTRAITS; those of files that were given up are among them."""
    parts = list(tables_of(done, PORTRAIT_UNITS, scratch))
    parts.append(pa.Table.from_pylist(_given_up(done, PORTRAIT_UNITS), PORTRAITS))
    return pa.concat_tables(parts).sort_by("file")


def clip_rows(done: Sequence[Done]) -> list[Row]:
    """The rows of all clips by file, with what no column of CLIPS has: content, cuts, left_out."""
    rows = [unit.record["clip"] for unit in done if "clip" in unit.record]
    rows += _given_up(done, CLIP_UNITS)
    return sorted(rows, key=lambda row: row["file"])


def frame_tables(done: Sequence[Done], scratch: Path, splits: Mapping[str, str]) -> Iterator[pa.Table]:
    """The rows of the frames of each clip, FRAMES, with the split of their clip in `splits`."""
    for table in tables_of(done, FRAME_ROWS, scratch):
        split = [splits[clip] for clip in table["clip"].to_pylist()]
        place = table.schema.get_field_index("split")
        yield table.set_column(place, "split", pa.array(split, pa.string()))


def frame_states(done: Sequence[Done], scratch: Path) -> list[Row]:
    """Status and reason of all frames."""
    rows: list[Row] = []
    for table in tables_of(done, FRAME_ROWS, scratch, ["status", "reason"]):
        rows += table.to_pylist()
    return rows


def face_pixels(done: Sequence[Done], prefix: str) -> list[float]:
    """The sizes of all used faces in the pictures that they came from."""
    sizes: list[float] = []
    for unit in done:
        if unit.name.startswith(prefix):
            sizes += unit.record.get("face_pixels", [])
    return sizes


def rejected_files(done: Done, scratch: Path) -> list[str]:
    """The files of a unit that could not be used; a clip can be used when some of its frames can."""
    rows = [done.record["clip"]] if "clip" in done.record else []
    for table in tables_of([done], PORTRAIT_UNITS, scratch, ["file", "status"]):
        rows += table.to_pylist()
    return [row["file"] for row in rows if row["status"] == REJECTED]


def _given_up(done: Sequence[Done], prefix: str) -> list[Row]:
    rows = []
    for unit in done:
        if not unit.name.startswith(prefix):
            continue
        for reject in unit.rejects:
            row: Row = {"key": key_of(reject.item), "file": reject.item, "status": REJECTED}
            row |= {"reason": f"given up: {reject.reason}", "width": 0, "height": 0}
            rows.append(row)
    return rows
