"""Tables that are written in parts."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import UserError
from pipeline.core.files import sha256
from pipeline.store.tables import ROW_GROUP, RowGroups, matrix, row_sums, write_parts, write_table

SCHEMA = pa.schema({"key": pa.string(), "values": pa.list_(pa.float32())})


def rows(count: int) -> pa.Table:
    values = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    columns = {"key": [f"row-{number}" for number in range(count)], "values": list(values)}
    return pa.table(columns, SCHEMA)


@pytest.mark.parametrize("size", [7, 3 * ROW_GROUP])
def test_a_file_does_not_show_its_parts(size, tmp_path):
    whole = rows(2 * ROW_GROUP + 5)
    parts = [whole.slice(start, size) for start in range(0, len(whole), size)]
    path = write_parts(tmp_path / "parts.parquet", SCHEMA, parts)
    assert pq.read_table(path).equals(whole)
    groups = pq.ParquetFile(path).metadata
    assert [groups.row_group(number).num_rows for number in range(3)] == [ROW_GROUP, ROW_GROUP, 5]
    assert sha256(path) == sha256(write_table(tmp_path / "whole.parquet", whole))


def test_rows_by_their_keys(tmp_path):
    whole = rows(2 * ROW_GROUP + 5).sort_by("key")
    path = write_table(tmp_path / "table.parquet", whole)
    groups = RowGroups(path, "render_views", ["key", "values"])
    expected = {row["key"]: row for row in whole.to_pylist()}
    keys = list(expected)

    def right(start: int) -> bool:
        wanted = keys[start : start + 4]
        # The last one is in no table.
        return groups.rows([*reversed(wanted), "row-none"]) == {key: expected[key] for key in wanted}

    # A clip may lie in two row groups.
    assert right(0) and right(ROW_GROUP - 2) and right(2 * ROW_GROUP)
    # The last two row groups are read no more, the first one is.
    path.write_bytes(b"")
    assert right(ROW_GROUP + 9) and right(2 * ROW_GROUP)
    with pytest.raises(UserError, match=r"table.parquet is damaged: .* dvc repro render_views"):
        right(0)


def test_no_parts_make_an_empty_table(tmp_path):
    path = write_parts(tmp_path / "none.parquet", SCHEMA, [])
    assert pq.read_table(path).equals(SCHEMA.empty_table())


def test_parts_that_cannot_be_made_leave_what_was_there(tmp_path):
    path = write_table(tmp_path / "table.parquet", rows(3))

    def broken():
        yield rows(5)
        raise RuntimeError("no more rows")

    with pytest.raises(RuntimeError, match="no more rows"):
        write_parts(path, SCHEMA, broken())
    assert pq.read_table(path).equals(rows(3))
    assert [file.name for file in tmp_path.iterdir()] == ["table.parquet"]


def test_sums_of_rows_are_of_the_values_alone(tmp_path):
    """Whatever else is in the table, and however the file holds it."""
    count = 2600
    clips = [f"clip-{number // 26}" for number in range(count)]
    column = pa.array(clips)
    table = rows(count).append_column("clip", column)
    path = tmp_path / "a.parquet"

    def sums(**groups: int) -> dict[str, str]:
        pq.write_table(table, path, **groups)
        return row_sums(path, "ingest", "clip", ("key", "values"))

    found = sums()
    assert len(set(found.values())) == 100
    # Other row groups, and a clip that is gone, so that all batches end elsewhere.
    whole = table
    table = whole.slice(26)
    other = sums(row_group_size=77)
    first = found["clip-0"]
    assert {"clip-0": first, **other} == found
    changed = whole.to_pylist()
    changed[30]["values"].append(0.0)
    changed[2599]["values"] = None
    table = pa.Table.from_pylist(changed, whole.schema)
    again = sums()
    differing = [clip for clip in found if found[clip] != again[clip]]
    assert differing == ["clip-1", "clip-99"]


def test_a_matrix_of_no_rows_has_none():
    # A piece of a large table in which every row is of another split.
    labels = pa.table({"label": [[1.0, 2.0], [3.0, 4.0]]})
    assert matrix(labels, "label").tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert len(matrix(labels.slice(2), "label")) == 0
