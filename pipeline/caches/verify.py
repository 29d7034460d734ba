"""Whether a cache (data/views, data/genhead, data/ingest) is whole: checksums, what samples must have, tables against shards, files.

Everything that is wrong becomes a finding that names the file and, where it can, the sample and the field; nothing is changed. What has
no checksum of its own (tables and sidecars) is compared with what DVC recorded when the stage ended, if it did.
"""

import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import field as value
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.caches.dvc_record import md5, recorded_files
from pipeline.caches.kinds import GENHEAD, VIEWS, Field, Fields, Layout, describe, layout_of
from pipeline.core.errors import UserError
from pipeline.core.files import sha256
from pipeline.core.progress import progress
from pipeline.store.shards import ShardRecord, read_sidecar, sidecar_path
from pipeline.store.view_index import NAME, disagreements, fields_of, shard_rows

FIRST = 3  # of many, as examples

FieldsOfSamples = dict[
    str, dict[str, Field | None]
]  # the fields of samples by key, None for one that cannot be read


@dataclass(frozen=True)
class Finding:
    """Something wrong with `file` (relative to the folder): in a sample and a field of it, where that is known."""

    file: str
    problem: str
    sample: str = ""
    field: str = ""
    extra: bool = False  # the file does not belong here

    def __str__(self) -> str:
        where = [
            self.file,
            *([f"sample {self.sample}"] if self.sample else []),
            *([f"field {self.field}"] if self.field else []),
        ]
        return f"{', '.join(where)}: {self.problem}"


@dataclass
class Verdict:
    """What was looked at and what is wrong with it. `samples` has the keys that are in each shard."""

    layout: Layout
    findings: list[Finding] = value(default_factory=list)
    samples: dict[str, list[str]] = value(default_factory=dict)
    bytes: int = 0

    def damaged(self) -> set[str]:
        """The files that are wrong: shards (a sidecar counts as its shard) and tables, without those that do not belong here."""
        return {finding.file.removesuffix(".json") for finding in self.findings if not finding.extra}


def verify(folder: Path) -> Verdict:
    """Look at everything in `folder`. Raises UserError when it is no cache."""
    verdict = Verdict(layout_of(folder))
    recorded = recorded_files(folder)
    names = {path.name.removesuffix(".json") for path in (folder / "shards").glob("*.tar*")}
    names |= {name[7:].removesuffix(".json") for name in recorded if name.startswith("shards/")}
    shards = sorted(name for name in names if verdict.layout.prefix(name))
    described: dict[str, FieldsOfSamples] = {}
    for name in progress(shards, label="verify", total=len(shards)):
        path = folder / "shards" / name
        described[name] = {}
        verdict.findings += _Shard(path, described[name]).findings()
        verdict.samples[name] = list(described[name])
        verdict.bytes += path.stat().st_size if path.is_file() else 0
    verdict.findings += _schema(verdict.layout, described)
    verdict.findings += _twice(verdict.samples)
    verdict.findings += _heads(verdict) if verdict.layout is GENHEAD else _tables(folder, verdict)
    verdict.findings += _files(folder, verdict, shards, recorded)
    return verdict


class _Shard:
    """One shard against its sidecar. Fills `samples`."""

    def __init__(self, path: Path, samples: FieldsOfSamples):
        self.path, self.samples = path, samples

    def _finding(self, problem: str, sample: str = "", field: str = "", sidecar: bool = False) -> Finding:
        return Finding(f"shards/{self.path.name}{'.json' if sidecar else ''}", problem, sample, field)

    def findings(self) -> Iterator[Finding]:
        headers = list(_headers(self.path)) if self.path.is_file() else []
        try:
            record, members = read_sidecar(self.path)
            _check_numbers(record, members)
        except (UserError, ValueError):
            yield self._finding("damaged" if sidecar_path(self.path).is_file() else "missing", sidecar=True)
            record, members = None, {}
            for key, name, offset, size in headers:
                members.setdefault(key, {})[name] = [offset, size, None]
        if not self.path.is_file():
            yield self._finding("missing")
            return
        known = [(key, name, *place) for key, fields in members.items() for name, place in fields.items()]
        size = self.path.stat().st_size
        cut = next((entry for entry in known if entry[2] + entry[3] > size), None)
        if record and size < record.bytes:
            yield self._finding(
                f"truncated: {size:,} of {record.bytes:,} bytes" + (", from here on" if cut else ""),
                *(cut or ())[:2],
            )
        elif record and size > record.bytes:
            yield self._finding(f"{size - record.bytes:,} bytes too long")
        altered = yield from self._fields(known, size)
        if record and size == record.bytes and not altered:
            yield from self._rest(record, known, headers)

    def _fields(self, known: list, size: int) -> Iterator[Finding]:
        """The fields by their CRC; returns whether one is altered."""
        altered = False
        with open(self.path, "rb") as file:
            for key, name, offset, length, crc in known:
                self.samples.setdefault(key, {})[name] = None
                if offset + length > size:
                    continue
                data = os.pread(file.fileno(), length, offset)
                if crc is not None and zlib.crc32(data) != crc:
                    altered = True
                    yield self._finding("altered: its CRC-32 is another one", key, name)
                    continue
                try:
                    self.samples[key][name] = describe(name, data)
                except UserError as error:
                    yield self._finding(str(error), key, name)
        return altered

    def _rest(self, record: ShardRecord, known: list, headers: list) -> Iterator[Finding]:
        """What is wrong when the contents of all fields are right."""
        if (record.name, record.samples) != (self.path.name, len({entry[0] for entry in known})):
            yield self._finding(
                "its name or the number of its samples is not that of the shard", sidecar=True
            )
        wrong = next(
            (entry for entry, header in zip(known, [*headers, None], strict=False) if entry[:4] != header),
            None,
        )
        if wrong or len(headers) != len(known):
            yield self._finding("the tar's header is not what the sidecar says", *(wrong or ())[:2])
        elif sha256(self.path) != record.sha256:
            yield self._finding(
                "its checksum is not that of the sidecar, but all fields are right: the tar's padding or the sidecar is altered"
            )


def _check_numbers(record: ShardRecord, members: dict) -> None:
    """Raises ValueError when a sidecar that can be read has something else where numbers belong."""
    numbers = [record.bytes, record.samples]
    for fields in members.values():
        if not isinstance(fields, dict) or any(
            not isinstance(place, list) or len(place) != 3 for place in fields.values()
        ):
            raise ValueError("no places of fields")
        numbers += [number for place in fields.values() for number in place]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("no numbers")


def _headers(path: Path) -> Iterator[tuple[str, str, int, int]]:
    """Key, field, offset and size of the files in a tar, as far as it can be read."""
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                key, _, name = info.name.partition(".")
                yield key, name, info.offset_data, info.size
    except (tarfile.TarError, OSError):
        return


def _schema(layout: Layout, described: dict[str, FieldsOfSamples]) -> Iterator[Finding]:
    """Samples that have not what most samples of the same prefix have the sizes for."""
    for prefix, expect in layout.samples.items():
        samples = [
            (shard, key, seen)
            for shard, keys in described.items()
            if layout.prefix(shard) == prefix
            for key, seen in keys.items()
        ]
        votes = Counter(
            frozenset(wanted.items())
            for _, _, seen in samples
            if (wanted := _expected(expect, seen)) is not None
        )
        if not votes:
            continue
        wanted = dict(votes.most_common(1)[0][0])
        for shard, key, seen in samples:
            for name in sorted(wanted.keys() | seen.keys()):
                if name not in wanted:
                    yield Finding(f"shards/{shard}", "no such field belongs into a sample", key, name)
                elif name not in seen:
                    yield Finding(f"shards/{shard}", "missing", key, name)
                elif seen[name] not in (None, wanted[name]):
                    yield Finding(f"shards/{shard}", f"is {seen[name]}, should be {wanted[name]}", key, name)


def _expected(expect: Callable[[Fields], Fields], seen: dict[str, Field | None]) -> Fields | None:
    try:
        return expect({name: found for name, found in seen.items() if found})
    except (KeyError, ValueError, IndexError):  # what the sizes are taken from is missing or of another shape
        return None


def _twice(samples: dict[str, list[str]]) -> Iterator[Finding]:
    places: dict[str, str] = {}
    for shard, keys in samples.items():
        for key in keys:
            if key in places:
                yield Finding(f"shards/{shard}", f"is in {places[key]} as well", key)
            places[key] = shard


def _heads(verdict: Verdict) -> Iterator[Finding]:
    """Synthetic heads have no table: shards and heads are numbered without a gap."""
    numbers = {int(shard[-10:-4]) for shard in verdict.samples}
    for number in sorted(set(range(max(numbers, default=-1) + 1)) - numbers):
        yield Finding(f"shards/heads-{number:06d}.tar", "missing")


def _tables(folder: Path, verdict: Verdict) -> Iterator[Finding]:
    """The tables against their schema and, where they list samples, against the shards."""
    rows: dict[str, tuple[str, str]] = {}  # sample: shard and table
    readable = True
    for name, schema in verdict.layout.tables.items():
        try:
            table = pq.read_table(folder / name)
            table.validate(full=True)
            types = {column.name: column.type for column in table.schema}
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            yield Finding(
                name, "missing" if not (folder / name).exists() else f"damaged: {str(error).splitlines()[0]}"
            )
            readable = False
            continue
        for column in schema:
            if column.name not in types:
                yield Finding(name, f"has no column {column.name}")
                readable = False
            elif types[column.name] != column.type:
                yield Finding(
                    name, f"the column {column.name} is {types[column.name]}, should be {column.type}"
                )
                readable = False
        if not readable or "shard" not in schema.names:
            continue
        if verdict.layout is VIEWS:
            yield from _index(folder, table, verdict)
        wanted = [column for column in ("key", "shard", "status") if column in schema.names]
        for row in table.select(wanted).to_pylist():
            if row.get("status", "ok") != "ok":
                continue
            if row["key"] in rows:
                yield Finding(name, "has two rows", row["key"])
            rows[row["key"]] = row["shard"], name
    if readable:
        yield from _rows_and_samples(rows, verdict.samples)


def _index(folder: Path, table: pa.Table, verdict: Verdict) -> Iterator[Finding]:
    """The rows of the index against what the shards and their sidecars say, for shards that are whole."""
    broken = verdict.damaged()
    for shard, keys in verdict.samples.items():
        rows = table.filter(pc.equal(table["shard"], shard))
        if (
            f"shards/{shard}" in broken or rows["key"].to_pylist() != keys
        ):  # other findings say how they differ
            continue
        names, known = shard_rows(folder / "shards" / shard)
        if names != fields_of(table.schema):
            yield Finding(NAME, f"has not the fields of shards/{shard} in its metadata")
        for key, column in disagreements(rows, known):
            yield Finding(NAME, f"the column {column} is not what shards/{shard} has", key)
    for row in (
        table.filter(pc.not_equal(table["kept"], pc.equal(table["reason"], ""))).slice(0, FIRST).to_pylist()
    ):
        yield Finding(NAME, "kept and reason contradict each other", row["key"])


def _rows_and_samples(rows: dict[str, tuple[str, str]], samples: dict[str, list[str]]) -> Iterator[Finding]:
    places = {key: shard for shard, keys in samples.items() for key in keys}
    for shard in sorted(
        {shard for shard, _ in rows.values()} - {shard for shard, keys in samples.items() if keys}
    ):
        lost = [key for key, (wanted, _) in rows.items() if wanted == shard]
        if shard not in samples:
            yield Finding(f"shards/{shard}", "missing")
        yield Finding(
            f"shards/{shard}",
            f"{len(lost)} rows of {rows[lost[0]][1]} have no sample, for example {', '.join(lost[:FIRST])}",
        )
    for key, (shard, table) in rows.items():
        if samples.get(shard) and places.get(key) != shard:
            yield Finding(
                f"shards/{shard}",
                f"{table} has a row for it, but it is {f'in {places[key]}' if key in places else 'not there'}",
                key,
            )
    for key in sorted(places.keys() - rows.keys()):
        yield Finding(f"shards/{places[key]}", "no table has a row for it", key)


def _files(folder: Path, verdict: Verdict, shards: list[str], recorded: dict[str, str]) -> Iterator[Finding]:
    """Files that do not belong here or are missing, and those without a checksum of their own against DVC's record."""
    named = {finding.file for finding in verdict.findings}
    own = {*verdict.layout.tables, *(f"shards/{name}{end}" for name in shards for end in ("", ".json"))}
    found = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
    for name in sorted(found - (set(recorded) or own)):
        yield Finding(name, "does not belong here", extra=True)
    for name in sorted((set(recorded) or own) - found - named):
        yield Finding(name, "missing")
    for name in sorted(set(recorded) & found - named):
        if name.endswith((".json", ".parquet")) and md5(folder / name) != recorded[name]:
            yield Finding(name, "altered: it is not the file that dvc.lock records")
