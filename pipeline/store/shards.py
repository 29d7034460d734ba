"""Shards: plain tar files of samples that anybody can read, with a sidecar that makes them quick and safe to read.

A sample is a key and named fields of bytes; in the tar a field is the file `key.field` (WebDataset's layout), say `a-000001.image.png`.
Equal samples make equal bytes: no times, no user names, fields in alphabetical order. Beside `x.tar` lies `x.tar.json` with the checksum
of the whole and place, size and CRC-32 of every field, because a tar that is cut between two files or has a flipped byte looks healthy.
"""

import dataclasses
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

import cv2
import numpy as np
import webdataset

from pipeline.core.errors import UserError
from pipeline.core.files import sha256, write_bytes

KEY = re.compile(r"[a-z0-9_-]+")  # a dot would end the key, a slash would make a folder
FIELD = re.compile(r"[a-z0-9_-]+\.[a-z0-9]+")
BLOCK = 512  # tar: a header of one block, then the content padded to whole blocks
LONGEST_NAME = 100  # of a file in a tar without extensions

Sample = tuple[str, Mapping[str, bytes]]


@dataclasses.dataclass(frozen=True)
class ShardRecord:
    """What is known of a finished shard: file name, SHA-256, size in bytes, number of samples."""

    name: str
    sha256: str
    bytes: int
    samples: int


def write_shard(path: str | Path, samples: Iterable[Sample]) -> ShardRecord:
    """Write `samples` in their order to the tar `path` and the sidecar beside it; both appear complete or not at all.

    Raises ValueError for a key or field name that breaks the rules or comes twice, UserError when the place cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    members: dict[str, dict[str, list[int]]] = {}
    position = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            with webdataset.TarWriter(file, user="psi4d", group="psi4d", mtime=0, encoder=False) as tar:
                for key, fields in samples:
                    _check_names(path, key, fields, members)
                    tar.write({"__key__": key, **fields})
                    members[key] = {}
                    for field in sorted(fields):
                        data = fields[field]
                        members[key][field] = [position + BLOCK, len(data), zlib.crc32(data)]
                        position += BLOCK + -(-len(data) // BLOCK) * BLOCK
            file.flush()
            os.fsync(file.fileno())
        record = ShardRecord(path.name, sha256(temporary), temporary.stat().st_size, len(members))
        sidecar = json.dumps(dataclasses.asdict(record) | {"members": members}, separators=(",", ":"))
        write_bytes(sidecar_path(path), sidecar.encode())
        os.replace(temporary, path)  # the tar comes last: a tar that is there has its sidecar
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}. Make the folder writable or free some space, then run again."
        ) from error
    finally:
        if temporary.exists():
            temporary.unlink()
    return record


def _check_names(path: Path, key: str, fields: Mapping[str, bytes], known: Mapping[str, object]) -> None:
    if not KEY.fullmatch(key):
        raise ValueError(f"{path.name}: the key {key!r} is not made of a-z, 0-9, _ and - only")
    if key in known:
        raise ValueError(f"{path.name}: the key {key} comes twice")
    for field in fields:
        if not FIELD.fullmatch(field) or len(key) + 1 + len(field) > LONGEST_NAME:
            raise ValueError(
                f"{path.name}: {key}.{field} is no name for a field: name.suffix in a-z, 0-9, _ and -, at most {LONGEST_NAME} letters"
            )


def sidecar_path(path: str | Path) -> Path:
    """Where the sidecar of the shard `path` lies."""
    path = Path(path)
    return path.with_name(path.name + ".json")


def read_sidecar(path: str | Path) -> tuple[ShardRecord, dict[str, dict[str, list[int]]]]:
    """The record of the shard `path` and {key: {field: [offset, size, crc32]}}. Raises UserError when the sidecar is missing or damaged."""
    try:
        content = json.loads(sidecar_path(path).read_bytes())
        members = content.pop("members")
        return ShardRecord(**content), members
    except FileNotFoundError as error:
        raise UserError(
            f"the shard {path} has no {sidecar_path(path).name} beside it. Make the shard again by running its stage."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{sidecar_path(path)} is damaged. Make the shard again by running its stage."
        ) from error


def check_shard(path: str | Path) -> ShardRecord:
    """Read the whole shard and compare it with its sidecar. Raises UserError when they differ or one is missing."""
    record, _ = read_sidecar(path)
    if not Path(path).is_file():
        raise UserError(f"the shard {path} is missing. Make it again by running its stage.")
    if sha256(path) != record.sha256:
        raise UserError(
            f"the shard {path} is damaged: its checksum is not the one it was written with. Make it again by running its stage."
        )
    return record


def read_fields(path: str | Path, key: str, places: Mapping[str, Sequence[int]]) -> dict[str, bytes]:
    """The fields of the sample `key` in the shard `path`, where `places` (offset, size, CRC-32) has them, by positional reads.

    Raises UserError that names shard, field and key when the shard cannot be opened or a field is cut short or altered.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"cannot open {path}: {error.strerror}. Make it again by running its stage."
        ) from error
    try:
        found = {name: os.pread(descriptor, size, offset) for name, (offset, size, _) in places.items()}
    finally:
        os.close(descriptor)
    for name, data in found.items():
        if what := damage(data, *places[name][1:]):
            raise damaged_field(path, name, key, what)
    return found


def damage(data: bytes, size: int, crc: int) -> str:
    """What has happened to the bytes of a field that had that size and CRC-32 when it was written: "" if nothing."""
    return "cut short" if len(data) != size else "altered" if zlib.crc32(data) != crc else ""


def damaged_field(shard: str | Path, name: str, key: str, what: str) -> UserError:
    """The error of a field that must not be used."""
    return UserError(
        f"{shard}: the field {name} of the sample {key} is {what}. Make the shard again by running its stage."
    )


class ShardReader:
    """Reads samples by key from all shards of a folder with positional reads: no state, so it may be pickled, forked and shared by threads.

    Opening reads the sidecars only. Raises UserError when the folder holds no shard, a shard has no sidecar, or a key is in two shards.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.records: dict[str, ShardRecord] = {}
        self._places: dict[str, tuple[str, dict[str, list[int]]]] = {}
        for path in sorted(self.folder.glob("*.tar")):
            self.records[path.name], members = read_sidecar(path)
            for key, fields in members.items():
                if key in self._places:
                    raise UserError(
                        f"{self.folder}: the key {key} is in {self._places[key][0]} and in {path.name}. Run the stage that made them again."
                    )
                self._places[key] = (path.name, fields)
        if not self.records:
            raise UserError(
                f"there is no shard (*.tar) in {self.folder}. Run the stage that makes it: dvc repro."
            )

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def keys(self) -> list[str]:
        """All keys: shards by name, samples in the order they were written."""
        return list(self._places)

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of each shard by its file name."""
        return {name: record.bytes for name, record in self.records.items()}

    def shard(self, key: str) -> str:
        """The file name of the shard that holds `key`."""
        return self._place(key)[0]

    def fields(self, key: str) -> list[str]:
        """The names of the fields of `key`, in alphabetical order."""
        return list(self._place(key)[1])

    @overload
    def read(self, key: str) -> dict[str, bytes]: ...
    @overload
    def read(self, key: str, field: str) -> bytes: ...
    def read(self, key: str, field: str | None = None) -> dict[str, bytes] | bytes:
        """All fields of a sample, or one. Raises UserError that names shard, key and field when it is absent, cut short or altered."""
        shard, places = self._place(key)
        if field is not None and field not in places:
            raise UserError(
                f"{self.folder / shard}: the sample {key} has no field {field}, only {', '.join(places)}."
            )
        found = read_fields(self.folder / shard, key, {field: places[field]} if field else places)
        return found[field] if field else found

    def _place(self, key: str) -> tuple[str, dict[str, list[int]]]:
        if key not in self._places:
            raise UserError(f"there is no sample {key} in the shards of {self.folder}.")
        return self._places[key]


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of an image: uint8 or uint16, (H, W) grey or (H, W, 3) RGB. Lightly compressed, since that is what takes the time.

    Raises ValueError for another shape or type.
    """
    if image.dtype not in (np.uint8, np.uint16) or not (
        image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    ):
        raise ValueError(
            f"a PNG holds uint8 or uint16 of shape (H, W) or (H, W, 3), not {image.dtype} of shape {image.shape}"
        )
    if image.ndim == 3:
        image = image[:, :, ::-1]
    return cv2.imencode(".png", np.ascontiguousarray(image), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def decode_png(data: bytes) -> np.ndarray:
    """The image in PNG bytes: uint8 or uint16, (H, W) or (H, W, 3) RGB. Raises UserError when it cannot be decoded."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if image is None:
        raise UserError("the bytes of an image are no PNG that can be decoded.")
    return np.ascontiguousarray(image[:, :, ::-1]) if image.ndim == 3 else image


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
