"""One shard of a cache against its sidecar: every field by its checksum, then what lies between fields."""

import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.caches.finding import FieldAt, Finding, Seen
from pipeline.caches.kinds import describe
from pipeline.core.errors import UserError
from pipeline.core.files import sha256
from pipeline.store.shards import Members, OlderFormat, ShardRecord, read_sidecar, sidecar_path


class ShardCheck:
    """What is wrong with a shard; `findings` fills `samples` with what the fields of every sample hold."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage
        self.samples: dict[str, Seen] = {}
        self.altered = False

    def findings(self) -> Iterator[Finding]:
        """Everything that is wrong, the sidecar first."""
        is_there = self.path.is_file()
        headers = list(_headers(self.path)) if is_there else []
        record, members = yield from self._sidecar()
        if not is_there:
            yield self._finding("missing")
            return
        # Without a sidecar the headers of the tar still say which fields there are, though not whether they
        # are whole.
        fields, crcs = headers, None
        if record:
            fields, crcs = _known(members)
        size = self.path.stat().st_size
        if record:
            yield from self._length(record, fields, size)
        yield from self._contents(fields, crcs, size)
        if record and size == record.bytes and not self.altered:
            yield from self._rest(record, fields, headers)

    def _finding(
        self,
        problem: str,
        sample: str = "",
        field: str = "",
        sidecar: bool = False,
    ) -> Finding:
        end = ".json" if sidecar else ""
        file = f"shards/{self.path.name}{end}"
        return Finding(file, problem, sample, field)

    def _sidecar(self) -> Iterator[Finding]:
        """Returns the record and the places of the fields, None and nothing where they cannot be known."""
        try:
            record, members = read_sidecar(self.path, self.stage)
            _check_numbers(record, members)
            return record, members
        except OlderFormat as error:
            problem = str(error).removeprefix(f"{self.path} ")
            yield self._finding(problem, sidecar=True)
        except (UserError, ValueError):
            problem = "damaged" if sidecar_path(self.path).is_file() else "missing"
            yield self._finding(problem, sidecar=True)
        return None, {}

    def _length(
        self,
        record: ShardRecord,
        fields: list[FieldAt],
        size: int,
    ) -> Iterator[Finding]:
        """Whether the tar is as long as it was, and if it is not, which field is the first that is lost."""
        if size > record.bytes:
            yield self._finding(f"{size - record.bytes:,} bytes too long")
        if size >= record.bytes:
            return
        problem = f"truncated: {size:,} of {record.bytes:,} bytes"
        for place in fields:
            if place.offset + place.size > size:
                yield self._finding(f"{problem}, from here on", place.sample, place.field)
                return
        yield self._finding(problem)

    def _contents(
        self,
        fields: list[FieldAt],
        crcs: list[int] | None,
        size: int,
    ) -> Iterator[Finding]:
        """The fields by their CRC, as far as the tar goes. Notes whether one is altered."""
        with open(self.path, "rb") as file:
            for number, place in enumerate(fields):
                seen = self.samples.setdefault(place.sample, {})
                seen[place.field] = None
                # The first field that is cut was named with the length; the others say nothing new.
                if place.offset + place.size > size:
                    continue
                data = os.pread(file.fileno(), place.size, place.offset)
                if crcs and zlib.crc32(data) != crcs[number]:
                    self.altered = True
                    yield self._finding("altered: its CRC-32 is another one", place.sample, place.field)
                    continue
                try:
                    seen[place.field] = describe(place.field, data)
                except UserError as error:
                    yield self._finding(str(error), place.sample, place.field)

    def _rest(
        self,
        record: ShardRecord,
        fields: list[FieldAt],
        headers: list[FieldAt],
    ) -> Iterator[Finding]:
        """What is wrong when the contents of all fields are right."""
        # No CRC covers what lies between the fields: names, headers, padding.
        samples = len({place.sample for place in fields})
        if (record.name, record.samples) != (self.path.name, samples):
            yield self._finding(
                "its name or the number of its samples is not that of the shard", sidecar=True
            )
        if headers != fields:
            sample, field = _first_difference(fields, headers)
            yield self._finding("the tar's header is not what the sidecar says", sample, field)
        elif sha256(self.path) != record.sha256:
            yield self._finding(
                "its checksum is not that of the sidecar, but all fields are right: "
                "the tar's padding or the sidecar is altered"
            )


def _first_difference(
    fields: list[FieldAt],
    headers: list[FieldAt],
) -> tuple[str, str]:
    """Sample and field of the first place that is not what the tar says; "" where the tar has more."""
    for number, place in enumerate(fields):
        if number >= len(headers) or headers[number] != place:
            return place.sample, place.field
    return "", ""


def _known(members: Members) -> tuple[list[FieldAt], list[int]]:
    """The places of all fields that a sidecar names, and their CRC-32."""
    fields, crcs = [], []
    for key, places in members.items():
        for name, (offset, size, crc) in places.items():
            fields.append(FieldAt(key, name, offset, size))
            crcs.append(crc)
    return fields, crcs


def _check_numbers(record: ShardRecord, members: Members) -> None:
    """Raises ValueError when a sidecar that can be read has something else where numbers belong."""
    # A flipped byte may leave a JSON that can be parsed, and an offset that is text would be an error of
    # ours.
    numbers = [record.bytes, record.samples]
    for fields in members.values():
        if not isinstance(fields, dict):
            raise ValueError("no fields")
        for place in fields.values():
            if not isinstance(place, list) or len(place) != 3:
                raise ValueError("no place of a field")
            numbers += place
    for number in numbers:
        if type(number) is not int or number < 0:
            raise ValueError("no number")


def _headers(path: Path) -> Iterator[FieldAt]:
    """The files in a tar, as far as it can be read."""
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                key, _, name = info.name.partition(".")
                yield FieldAt(key, name, info.offset_data, info.size)
    except (tarfile.TarError, OSError):
        return
