"""A unit of work: one shard with a fixed list of items, and what is on disk of it once it is done.

`name.tar` with its sidecar comes first, then tables of rows as `name.<table>.parquet`, and `name.done.json`
last. The record says what went into the shard, the checksums of the tables, what was given up and why, and
how long it took. It stays in the scratch folder, so that no time gets into anything that is published.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.errors import UserError
from pipeline.core.files import sha256
from pipeline.store.shards import Sample, ShardRecord, check_shard


@dataclasses.dataclass(frozen=True)
class WorkUnit:
    """One piece of work: the name of its shard (without .tar) and its items, JSON-able, in their order."""

    name: str
    items: Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Reject:
    """An item that was given up: its worker raised an error for it, or died of it, each time it was tried."""

    item: Any
    reason: str


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished unit.

    `shard` is None when it made no samples; `record` is what its worker returned, as read back from JSON,
    and `tables` has the SHA-256 of each table that was in it; `rejects` were given up; `seconds` is how long
    it took.
    """

    name: str
    shard: ShardRecord | None
    record: dict[str, Any]
    rejects: tuple[Reject, ...] = ()
    tables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seconds: float = dataclasses.field(default=0.0, compare=False)


# A worker: the samples of a unit and a record, which it may complete while the samples are being consumed.
# The values of a record are JSON, or Rows, which become Parquet: in JSON a float takes twenty letters.
Work = Callable[[WorkUnit], tuple[Iterable[Sample], dict[str, Any]]]


def units_of(prefix: str, items: Sequence[Any], size: int) -> list[WorkUnit]:
    """Cut `items` into units of `size`: prefix-000000, prefix-000001 and so on."""
    starts = range(0, len(items), size)
    parts = [list(items[start : start + size]) for start in starts]
    return [WorkUnit(f"{prefix}-{number:06d}", part) for number, part in enumerate(parts)]


def mark(unit: WorkUnit) -> str:
    """A checksum of the unit's name and items."""
    return hashlib.sha256(json.dumps([unit.name, unit.items]).encode()).hexdigest()


def record_path(unit: WorkUnit, scratch: Path) -> Path:
    """Where the record of a finished unit lies."""
    return scratch / f"{unit.name}.done.json"


def table_path(name: str, table: str, scratch: Path) -> Path:
    """Where a table of the unit `name` lies."""
    return scratch / f"{name}.{table}.parquet"


def tables_of(
    done: Iterable[Done],
    table: str,
    scratch: Path,
    columns: Collection[str] | None = None,
) -> Iterator[pa.Table]:
    """The table `table` of each unit that has one, all columns or these, one unit in memory at a time."""
    for one in done:
        if table in one.tables:
            path = table_path(one.name, table, scratch)
            yield pq.read_table(path, columns=columns and list(columns))


def finished(unit: WorkUnit, scratch: Path, verify: bool = True) -> Done | None:
    """The result of a unit that is done, otherwise None.

    With `verify` its shard and its tables must be whole.
    """
    try:
        content = json.loads(record_path(unit, scratch).read_bytes())
        if content["items"] != mark(unit):
            return None
        shard = content["shard"] and ShardRecord(**content["shard"])
        if shard and verify and check_shard(scratch / shard.name) != shard:
            return None
        tables = content["tables"]
        if verify and any(sha256(table_path(unit.name, name, scratch)) != tables[name] for name in tables):
            return None
        rejects = tuple(Reject(**reject) for reject in content["rejects"])
        return Done(unit.name, shard, content["record"], rejects, tables, content["seconds"])
    # Absent or damaged: the unit is simply done again.
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None
