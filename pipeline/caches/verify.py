"""Whether a cache (data/views, data/genhead, data/ingest) is whole: checksums, fields, tables, files.

Everything that is wrong becomes a finding that names the file and, where it can, the sample and the field;
nothing is changed. What has no checksum of its own (tables and sidecars) is compared with what DVC recorded
when the stage ended, if it did.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.caches.dvc_record import md5, recorded_files
from pipeline.caches.finding import Finding, Seen, Verdict
from pipeline.caches.kinds import GENHEAD, VIEWS, Layout, layout_of
from pipeline.caches.shard_check import ShardCheck
from pipeline.core.progress import progress
from pipeline.store.samples import Form, Kind
from pipeline.store.tables import OK
from pipeline.store.view_index import NAME, disagreements, fields_of, shard_rows

FIRST = 3  # of many, as examples

Described = dict[str, dict[str, Seen]]  # what was seen in each sample of each shard
Rows = dict[str, tuple[str, str]]  # the shard of a sample and the table that says so, by the sample's key


def verify(folder: Path) -> Verdict:
    """Look at everything in `folder`. Raises UserError when it is no cache."""
    layout = layout_of(folder)
    verdict = Verdict(layout)
    recorded = recorded_files(folder)
    shards = _shard_names(folder, layout, recorded)
    described: Described = {}
    for name in progress(shards, label="verify", total=len(shards)):
        path = folder / "shards" / name
        check = ShardCheck(path, layout.stage)
        verdict.findings += check.findings()
        described[name] = check.samples
        verdict.samples[name] = list(check.samples)
        verdict.bytes += path.stat().st_size if path.is_file() else 0
    # Tables are compared with what the shards were found to have; files that are reported once are not
    # reported again.
    verdict.findings += _schema(layout, described)
    verdict.findings += _twice(verdict.samples)
    if layout is GENHEAD:
        verdict.findings += _heads(verdict)
    else:
        verdict.findings += _tables(folder, verdict)
    verdict.findings += _files(folder, verdict, shards, recorded)
    return verdict


def _shard_names(
    folder: Path,
    layout: Layout,
    recorded: dict[str, str],
) -> list[str]:
    """The file names of all shards that are there, have a sidecar or were there when the stage ended."""
    files = {path.name for path in (folder / "shards").glob("*.tar*")}
    files |= {name.removeprefix("shards/") for name in recorded if name.startswith("shards/")}
    names = {name.removesuffix(".json") for name in files}
    return sorted(name for name in names if layout.prefix(name))


def _schema(layout: Layout, described: Described) -> Iterator[Finding]:
    """Samples that have not what most samples of the same prefix have the sizes for."""
    for prefix, kind in layout.samples.items():
        shards = [shard for shard in described if layout.prefix(shard) == prefix]
        samples = []
        for shard in shards:
            samples += [(shard, key, seen) for key, seen in described[shard].items()]
        # Samples vote, as nothing else says how large pictures are: the cache may come from somewhere else.
        votes: Counter[frozenset] = Counter()
        for _, _, seen in samples:
            wanted = _expected(kind, seen)
            if wanted is not None:
                votes[frozenset(wanted.items())] += 1
        if not votes:
            continue
        [(most, _)] = votes.most_common(1)
        for shard, key, seen in samples:
            for name, problem in _differences(dict(most), seen):
                yield Finding(f"shards/{shard}", problem, key, name)


def _expected(kind: type[Kind], seen: Seen) -> dict[str, Form] | None:
    """What a sample with these sizes must have; None where the fields that tell them are missing or wrong."""
    readable = {name: form for name, form in seen.items() if form}
    try:
        return kind.expected(readable)
    except (KeyError, ValueError, IndexError):
        return None


def _differences(wanted: dict[str, Form], seen: Seen) -> Iterator[tuple[str, str]]:
    """Names of fields and what is wrong with them; a field that cannot be read is a finding already."""
    for name in sorted(wanted.keys() | seen.keys()):
        if name not in wanted:
            yield name, "no such field belongs into a sample"
        elif name not in seen:
            yield name, "missing"
        elif seen[name] not in (None, wanted[name]):
            yield name, f"is {seen[name]}, should be {wanted[name]}"


def _twice(samples: dict[str, list[str]]) -> Iterator[Finding]:
    # A reader finds a sample by its key and would see one of the two alone.
    places: dict[str, str] = {}
    for shard, keys in samples.items():
        for key in keys:
            if key in places:
                problem = f"is in {places[key]} as well"
                yield Finding(f"shards/{shard}", problem, key)
            places[key] = shard


def _heads(verdict: Verdict) -> Iterator[Finding]:
    """Synthetic heads have no table: shards and heads are numbered without a gap."""
    numbers = set()
    for shard in verdict.samples:
        _, _, number = Path(shard).stem.rpartition("-")
        numbers.add(int(number))
    count = max(numbers, default=-1) + 1
    for number in sorted(set(range(count)) - numbers):
        yield Finding(f"shards/heads-{number:06d}.tar", "missing")


def _tables(folder: Path, verdict: Verdict) -> Iterator[Finding]:
    """The tables against their schema and, where they list samples, against the shards."""
    rows: Rows = {}
    readable = True
    for name, schema in verdict.layout.tables.items():
        table = None
        try:
            table = pq.read_table(folder / name)
            # Reading checks the layout of the file alone: a flipped byte may still be in a text or a length.
            table.validate(full=True)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            found = [_unreadable(folder / name, error)]
        else:
            found = list(_columns(name, table, schema))
        yield from found
        readable = readable and not found
        if not readable or "shard" not in schema.names:
            continue
        if verdict.layout is VIEWS:
            yield from _index(folder, table, verdict)
        yield from _collect(name, table, rows)
    if readable:
        yield from _rows_and_samples(rows, verdict.samples)


def _unreadable(path: Path, error: Exception) -> Finding:
    if not path.exists():
        return Finding(path.name, "missing")
    first, *_ = str(error).splitlines()
    return Finding(path.name, f"damaged: {first}")


def _columns(
    name: str,
    table: pa.Table,
    schema: pa.Schema,
) -> Iterator[Finding]:
    types = {column.name: column.type for column in table.schema}
    for column in schema:
        if column.name not in types:
            yield Finding(name, f"has no column {column.name}")
        elif (found := types[column.name]) != column.type:
            problem = f"the column {column.name} is {found}, should be {column.type}"
            yield Finding(name, problem)


def _collect(name: str, table: pa.Table, rows: Rows) -> Iterator[Finding]:
    """Add the samples that a table lists to `rows`."""
    wanted = [column for column in ("key", "shard", "status") if column in table.column_names]
    for row in table.select(wanted).to_pylist():
        if row.get("status", OK) != OK:
            continue
        # Training would see such a sample twice as often.
        if row["key"] in rows:
            yield Finding(name, "has two rows", row["key"])
        rows[row["key"]] = row["shard"], name


def _index(folder: Path, table: pa.Table, verdict: Verdict) -> Iterator[Finding]:
    """The rows of the index against what the shards and their sidecars say, for shards that are whole."""
    broken = verdict.damaged()
    for shard, keys in verdict.samples.items():
        rows = table.filter(pc.equal(table["shard"], shard))
        same_keys = rows["key"].to_pylist() == keys
        # Of other shards there are findings already, which say how they differ.
        if f"shards/{shard}" in broken or not same_keys:
            continue
        names, known = shard_rows(folder / "shards" / shard)
        if names != fields_of(table.schema):
            yield Finding(NAME, f"has not the fields of shards/{shard} in its metadata")
        for key, column in disagreements(rows, known):
            problem = f"the column {column} is not what shards/{shard} has"
            yield Finding(NAME, problem, key)
    is_good = pc.equal(table["reason"], "")
    contradicting = table.filter(pc.not_equal(table["kept"], is_good))
    for row in contradicting.slice(0, FIRST).to_pylist():
        yield Finding(NAME, "kept and reason contradict each other", row["key"])


def _rows_and_samples(rows: Rows, samples: dict[str, list[str]]) -> Iterator[Finding]:
    """Rows without a sample and samples without a row; a shard that is empty or missing is one finding."""
    place_of = {key: shard for shard, keys in samples.items() for key in keys}
    filled = {shard for shard, keys in samples.items() if keys}
    listed = {shard for shard, _ in rows.values()}
    for shard in sorted(listed - filled):
        lost = [key for key, (wanted, _) in rows.items() if wanted == shard]
        if shard not in samples:
            yield Finding(f"shards/{shard}", "missing")
        _, table = rows[lost[0]]
        some = ", ".join(lost[:FIRST])
        problem = f"{len(lost)} rows of {table} have no sample, for example {some}"
        yield Finding(f"shards/{shard}", problem)
    for key, (shard, table) in rows.items():
        if shard in filled and place_of.get(key) != shard:
            found = f"in {place_of[key]}" if key in place_of else "not there"
            problem = f"{table} has a row for it, but it is {found}"
            yield Finding(f"shards/{shard}", problem, key)
    for key in sorted(place_of.keys() - rows.keys()):
        yield Finding(f"shards/{place_of[key]}", "no table has a row for it", key)


def _files(
    folder: Path,
    verdict: Verdict,
    shards: list[str],
    recorded: dict[str, str],
) -> Iterator[Finding]:
    """Files that do not belong here or are missing.

    Those without a checksum of their own are compared with DVC's record.
    """
    reported = {finding.file for finding in verdict.findings}
    own = set(verdict.layout.tables)
    for name in shards:
        own |= {f"shards/{name}", f"shards/{name}.json"}
    wanted = set(recorded) or own
    found = set()
    for path in folder.rglob("*"):
        # A link counts as a file whatever it leads to: DVC links files, never folders.
        if path.is_symlink() or not path.is_dir():
            found.add(path.relative_to(folder).as_posix())
    for name in sorted(found - wanted):
        yield Finding(name, "does not belong here", extra=True)
    for name in sorted(wanted - found - reported):
        yield Finding(name, "missing")
    for name in sorted(set(recorded) & found - reported):
        # A shard has been compared with its sidecar already, and hashing it again would double the time.
        has_no_checksum = name.endswith((".json", ".parquet"))
        if has_no_checksum and md5(folder / name) != recorded[name]:
            yield Finding(name, "altered: it is not the file that dvc.lock records")
