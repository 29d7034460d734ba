"""Shards: plain tar files of samples, with a sidecar that makes them quick and safe to read.

A sample is a key and named fields of bytes; in the tar a field is the file `key.field` (WebDataset's
layout), say `a-000001.image.png`. Equal samples make equal bytes: no times, no user names, fields in
alphabetical order. Beside `x.tar` lies `x.tar.json` with the number of the format, the checksum of the
whole, and place, size and CRC-32 of every field, because a tar that is cut between two files or has a
flipped byte looks healthy.
"""

import dataclasses
import io
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import webdataset

from pipeline.core.errors import UserError
from pipeline.store.codecs import spellings
from pipeline.store.sealed import Draft, check_sealed, read_facts, seal_path, sealing

# What a shard holds: raised by one whenever the fields of samples, the sidecar or the index of a cache
# change. Shards without a number are older than 2, the first in which views have landmarks.
FORMAT = 2
KEY = re.compile(r"[a-z0-9_-]+")  # a dot would end the key, a slash would make a folder
FIELD = re.compile(r"[a-z0-9_-]+\.[a-z0-9]+")
BLOCK = 512  # tar: a header of one block, then the content padded to whole blocks
LONGEST_NAME = 100  # of a file in a tar without extensions

Sample = tuple[str, Mapping[str, bytes]]
Place = Sequence[int]  # of a field: offset, size, CRC-32
Members = dict[str, dict[str, Place]]  # places of fields by key and name


class OlderFormat(UserError):
    """A shard or an index that another version of psi4d wrote."""


@dataclasses.dataclass(frozen=True)
class ShardRecord:
    """What is known of a finished shard: file name, SHA-256, size in bytes, number of samples."""

    name: str
    sha256: str
    bytes: int
    samples: int


def write_shard(path: str | Path, samples: Iterable[Sample]) -> ShardRecord:
    """Write `samples` in their order to the tar `path`, and the sidecar beside it.

    Both appear complete or not at all. Raises ValueError for a key or field name that breaks the rules or
    comes twice, UserError when the place cannot be written.
    """
    path = Path(path)
    with sealing(path, compact=True) as draft:
        members = _write_members(draft, path.name, samples)
        size = draft.file.tell()
        draft.facts |= {"format": FORMAT, "name": path.name, "bytes": size, "samples": len(members)}
        draft.facts["members"] = members
    return ShardRecord(
        path.name,
        draft.facts["sha256"],
        size,
        len(members),
    )


def _write_members(
    draft: Draft,
    shard: str,
    samples: Iterable[Sample],
) -> Members:
    """Write the tar; returns where its fields lie."""
    members: Members = {}
    # Where a field begins is counted here, as the writer does not tell: a header of one block, then padded
    # content.
    position = 0
    # Owner and time are the same in every tar, so that equal samples make equal bytes.
    with webdataset.TarWriter(draft.file, user="psi4d", group="psi4d", mtime=0, encoder=False) as tar:
        for key, fields in samples:
            _check_names(shard, key, fields, members)
            tar.write({"__key__": key, **fields})
            members[key] = {}
            for field in sorted(fields):
                data = fields[field]
                start = position + BLOCK
                members[key][field] = [start, len(data), zlib.crc32(data)]
                position = start + padded(len(data))
    return members


def _check_names(
    shard: str,
    key: str,
    fields: Mapping[str, bytes],
    known: Mapping[str, object],
) -> None:
    # An unpacked sample is files with these names, and some systems take capitals for small letters.
    if not KEY.fullmatch(key):
        raise ValueError(f"{shard}: the key {key!r} is not made of a-z, 0-9, _ and - only")
    if key in known:
        raise ValueError(f"{shard}: the key {key} comes twice")
    for field in fields:
        name = f"{key}.{field}"
        if not FIELD.fullmatch(field) or len(name) > LONGEST_NAME:
            raise ValueError(
                f"{shard}: {name} is no name for a field: name.suffix in a-z, 0-9, _ and -, "
                f"at most {LONGEST_NAME} letters"
            )


def padded(size: int) -> int:
    """The bytes that a file of `size` bytes takes in a tar after its header."""
    return -(-size // BLOCK) * BLOCK


def sidecar_path(path: str | Path) -> Path:
    """Where the sidecar of the shard `path` lies."""
    return seal_path(path)


def check_format(found: object, what: object, stage: str = "") -> None:
    """Raises OlderFormat when the shard or index `what` is not of the format that is read here.

    `found` is the number of its format, or None; `stage` is the one that makes it.
    """
    if found == FORMAT:
        return
    said = f"of format {found}" if isinstance(found, int) else "older than all formats with a number"
    raise OlderFormat(
        f"{what} is {said}, and this version of psi4d reads format {FORMAT}. Make it again: {_again(stage)}."
    )


def _again(stage: str) -> str:
    return f"dvc repro {stage}".strip()


def read_sidecar(path: str | Path, stage: str = "") -> tuple[ShardRecord, Members]:
    """The record of the shard `path` and {key: {field: [offset, size, crc32]}}.

    `stage` is the one that makes it, for messages. Raises UserError when the sidecar is missing or damaged,
    OlderFormat for a shard of another format.
    """
    remedy = f"Make the shard again: {_again(stage)}."
    facts = read_facts(path, remedy)
    check_format(facts.pop("format", None), path, stage)
    try:
        members = facts.pop("members")
        return ShardRecord(**facts), members
    except (KeyError, TypeError) as error:
        raise UserError(f"{sidecar_path(path)} is damaged. {remedy}") from error


def check_shard(path: str | Path) -> ShardRecord:
    """Read the whole shard and compare it with its sidecar; returns its record.

    Raises UserError when they differ or one is missing.
    """
    record, _ = read_sidecar(path)
    check_sealed(path)
    return record


def read_fields(
    path: str | Path,
    key: str,
    places: Mapping[str, Place],
) -> dict[str, bytes]:
    """The fields of the sample `key` in the shard `path`, by positional reads where `places` has them.

    Raises UserError that names shard, field and key when the shard cannot be opened or a field is cut short
    or altered.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"cannot open {path}: {error.strerror}. Make it again by running its stage."
        ) from error
    found = {}
    # Positional reads share no position in the file, and what is read is checked at once.
    try:
        for name, (offset, size, crc) in places.items():
            found[name] = os.pread(descriptor, size, offset)
            if what := damage(found[name], size, crc):
                raise damaged_field(path, name, key, what)
    finally:
        os.close(descriptor)
    return found


def damage(data: bytes, size: int, crc: int) -> str:
    """What has happened to the bytes of a field that was written with that size and CRC-32: "" if nothing."""
    if len(data) != size:
        return "cut short"
    return "altered" if zlib.crc32(data) != crc else ""


def damaged_field(
    shard: str | Path,
    name: str,
    key: str,
    what: str,
) -> UserError:
    """The error of a field that must not be used."""
    return UserError(
        f"{shard}: the field {name} of the sample {key} is {what}. Make the shard again by running its stage."
    )


class ShardReader:
    """Reads samples by key from all shards of a folder with positional reads.

    It does not change once it is open, so it may be pickled, forked and shared by threads. Opening reads the
    sidecars only. What it keeps of them are arrays: some 20 bytes for a field and the letters of a key, where
    dictionaries would take a gigabyte and a half for two million frames.
    """

    def __init__(self, folder: str | Path, stage: str = "") -> None:
        """`stage` is the one that makes the shards, for messages.

        Raises UserError when the folder holds no shard, a shard has no sidecar, or a key is in two shards,
        and OlderFormat for a shard of another format.
        """
        self.folder = Path(folder)
        self.stage = stage
        self.records: dict[str, ShardRecord] = {}
        collected = _Places()
        # The sidecars tell all: a folder of thousands of shards opens without a look into a tar.
        for path in sorted(self.folder.glob("*.tar")):
            self.records[path.name], members = read_sidecar(path, stage)
            collected.add(members)
        if not self.records:
            raise UserError(f"there is no shard (*.tar) in {self.folder}. Make them: {_again(stage)}.")
        self._shards = list(self.records)
        self._names = list(collected.names)
        self._keys = np.concatenate(collected.keys)
        self._fields = np.concatenate(collected.fields)
        self._places = np.concatenate(collected.places)
        counts = np.array([len(names) for names in self._names], np.int64)[self._fields]
        # Of each sample the row of its first place; of each shard that of its first sample.
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._bounds = np.cumsum([len(keys) for keys in collected.keys])
        # Stable, so that of two equal keys the one of the first shard comes first.
        self._order = np.argsort(self._keys, kind="stable")
        self._refuse_twins()

    def _refuse_twins(self) -> None:
        """Raises UserError when two samples have one key."""
        ordered = self._keys[self._order]
        twins = np.flatnonzero(ordered[1:] == ordered[:-1])
        if not len(twins):
            return
        first, second = self._order[twins[0]], self._order[twins[0] + 1]
        key = self._keys[first].decode()
        twice = f"the key {key} is in {self._shard(first)} and in {self._shard(second)}"
        raise UserError(f"{self.folder}: {twice}. Make them again: {_again(self.stage)}.")

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return (key.decode() for key in self._keys)

    def __contains__(self, key: str) -> bool:
        return self._find(key) is not None

    def keys(self) -> list[str]:
        """All keys: shards by name, samples in the order they were written."""
        return list(self)

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of each shard by its file name."""
        return {name: record.bytes for name, record in self.records.items()}

    def shard(self, key: str) -> str:
        """The file name of the shard that holds `key`."""
        return self._shard(self._row(key))

    def fields(self, key: str) -> list[str]:
        """The names of the fields of `key`, in alphabetical order."""
        return list(self._names[self._fields[self._row(key)]])

    def __getitem__(self, key: str) -> Mapping[str, bytes]:
        """The sample as a mapping that reads a field when it is asked for.

        Raises UserError when there is none.
        """
        self._row(key)
        return _LazySample(self, key)

    @overload
    def read(self, key: str) -> dict[str, bytes]: ...
    @overload
    def read(self, key: str, field: str) -> bytes: ...
    def read(self, key: str, field: str | None = None) -> dict[str, bytes] | bytes:
        """All fields of a sample, or one.

        Raises UserError that names shard, key and field when it is absent, cut short or altered.
        """
        row = self._row(key)
        names = self._names[self._fields[row]]
        found = self._places[self._starts[row] : self._starts[row + 1]].tolist()
        places = dict(zip(names, found, strict=True))
        path = self.folder / self._shard(row)
        if field is None:
            return read_fields(path, key, places)
        # A picture may be asked for without knowing its codec.
        stored = [name for name in spellings(field) if name in places]
        field = stored[0] if stored and field not in places else field
        if field not in places:
            known = ", ".join(places)
            raise UserError(f"{path}: the sample {key} has no field {field}, only {known}.")
        return read_fields(path, key, {field: places[field]})[field]

    def _row(self, key: str) -> int:
        row = self._find(key)
        if row is None:
            raise UserError(f"there is no sample {key} in the shards of {self.folder}.")
        return row

    def _find(self, key: str) -> int | None:
        """The number of a sample, if there is one with this key."""
        # Another type than that of the array would let NumPy convert all of it for each look-up.
        wanted = np.array(key.encode(), self._keys.dtype)
        place = np.searchsorted(self._keys, wanted, sorter=self._order)
        if place == len(self._keys):
            return None
        row = int(self._order[place])
        return row if self._keys[row] == key.encode() else None

    def _shard(self, row: int) -> str:
        return self._shards[int(np.searchsorted(self._bounds, row, "right"))]


class _Places:
    """What a reader keeps of sidecars while it reads them, an array for each shard."""

    def __init__(self) -> None:
        self.names: dict[tuple[str, ...], int] = {}  # of the fields of a sample, and their number
        self.keys: list[np.ndarray] = []  # (n,) bytes
        self.fields: list[np.ndarray] = []  # (n,) int32, numbers in `names`
        self.places: list[np.ndarray] = []  # (fields of all samples, 3) int64: offset, size, CRC-32

    def add(self, members: Members) -> None:
        """Take the members of the next shard."""
        numbers, places = [], []
        for fields in members.values():
            # Nearly all samples of a folder have the same fields, whose names are kept once.
            numbers.append(self.names.setdefault(tuple(fields), len(self.names)))
            places += fields.values()
        self.keys.append(np.array([key.encode() for key in members], bytes))
        self.fields.append(np.array(numbers, np.int32))
        self.places.append(np.array(places, np.int64).reshape(-1, 3))


class _LazySample(Mapping[str, bytes]):
    """The fields of a sample, each read when it is asked for."""

    def __init__(self, reader: ShardReader, key: str) -> None:
        self.reader, self.key = reader, key

    def __getitem__(self, field: str) -> bytes:
        return self.reader.read(self.key, field)

    def __contains__(self, field: object) -> bool:
        return field in self.reader.fields(self.key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.reader.fields(self.key))

    def __len__(self) -> int:
        return len(self.reader.fields(self.key))


def encode_npy(array: np.ndarray) -> bytes:
    """The array as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def decode_npy(data: bytes) -> np.ndarray:
    """The array in the bytes of a .npy file. Raises UserError when it cannot be decoded; never unpickles."""
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError("the bytes of an array are no .npy file that can be decoded.") from error
