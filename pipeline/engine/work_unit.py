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
from pipeline.store.shards import Sample, ShardRecord, check_shard, sidecar_path


@dataclasses.dataclass(frozen=True)
class WorkUnit:
    """One piece of work: the name of its shard (without .tar) and its items, JSON-able, in their order.

    `inputs` is a fingerprint of all that the items are made from, `code` one of what makes them. While name,
    items and both are the same, a finished unit is never done again, whichever run did it.
    """

    name: str
    items: Sequence[Any]
    inputs: str = ""
    code: str = ""


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


def units_of(
    prefix: str,
    items: Sequence[Any],
    size: int,
    inputs: str = "",
    code: str = "",
) -> list[WorkUnit]:
    """Cut `items` into units of `size`: prefix-000000, prefix-000001 and so on."""
    starts = range(0, len(items), size)
    parts = [list(items[start : start + size]) for start in starts]
    return [WorkUnit(f"{prefix}-{number:06d}", part, inputs, code) for number, part in enumerate(parts)]


def buckets(names: Iterable[str], size: int) -> dict[int, list[str]]:
    """Names in buckets of at most `size`, which do not shift when another name comes; sorted in each.

    A bucket is a node of the binary tree of the names' hashes: the root is 1, below n are 2 n and 2 n + 1. A
    name lies in the highest node below which there are `size` names or fewer. So a name that comes or goes
    changes its own bucket, which may then split in two or join its neighbour. They are two thirds full.
    """
    found: dict[int, list[str]] = {}
    todo = [(1, sorted(names))]
    while todo:
        number, inside = todo.pop()
        if len(inside) <= size:
            found[number] = inside
            continue
        depth = number.bit_length() - 1
        for bit in (1, 0):
            todo.append((2 * number + bit, [name for name in inside if _hash_bit(name, depth) == bit]))
    return {number: inside for number, inside in found.items() if inside}


def _hash_bit(name: str, place: int) -> int:
    digest = hashlib.sha256(name.encode()).digest()
    return digest[place // 8] >> (7 - place % 8) & 1


def mark(unit: WorkUnit, code: bool = True) -> str:
    """A checksum of all that a unit says of itself; without `code` whatever makes it."""
    told = [unit.name, unit.items, unit.inputs, unit.code if code else ""]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


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


def files_of(done: Done, scratch: Path) -> list[Path]:
    """The files of a finished unit, but for its record: its tables and its shard with the sidecar."""
    files = [table_path(done.name, table, scratch) for table in done.tables]
    if done.shard:
        shard = scratch / done.shard.name
        files += [sidecar_path(shard), shard]
    return files


def finished(
    unit: WorkUnit,
    scratch: Path,
    verify: bool = True,
    any_code: bool = False,
) -> Done | None:
    """The result of a unit that is done, otherwise None.

    With `verify` its shard and its tables must be whole; with `any_code` another code may have made it.
    """
    try:
        content = json.loads(record_path(unit, scratch).read_bytes())
        if content["mark"] != mark(unit) and not (any_code and content["inputs"] == mark(unit, code=False)):
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
