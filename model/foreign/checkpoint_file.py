"""Reading foreign torch files as data: pickles of whole modules and files of torch.save, old and new (facts 10.1, 10.2).

A tensor stays a view of the file until somebody wants it; then its shape, stride and offset are checked against the bytes of its storage.
"""

import math
import mmap
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.foreign.safe_pickle import Bytes, Global, Record, read_part

LARGEST_FILE = 16 << 30  # bytes; the published Psi has about 2 GB
LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number that torch.save wrote before it wrote zip files, after the protocol
LEGACY_PROTOCOL = 1001
STORAGE_OPCODES = 1000  # a storage that is saved alone needs about 50
MOST_PARTS, MOST_FILES, LONGEST_NAME = 1_000_000, 100_000, 1000  # what a network can have at the very most
DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
PERSISTENT_CLASS = "torch_utils.persistence._reconstruct_persistent_obj"  # called with a dict that holds source code, which stays unread


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    numel: int
    key: str
    data: Bytes | None = None  # None until the stream behind the pickle is read


class CheckpointFile:
    """A file as data: `content` is the object in it, made of dicts, lists, tuples, plain values and Records.

    Tensors in it are for `tensor`. Raises ValueError, naming the file, for whatever is not readable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            if not 0 < size <= LARGEST_FILE:
                raise ValueError(f"it has {size} bytes")
            with open(path, "rb") as file:
                # The pages of a map are the file's own: a checkpoint of 2 GB takes no memory before its tensors are wanted.
                self.data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            self.storages: Mapping[str, Bytes] = {}
            self.content = self._read()
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _read(self) -> object:
        start = bytes(self.data[:16])
        if start.startswith(b"\x1f\x8b"):
            raise ValueError("it is compressed by gzip; unpack it first")
        if start.startswith(b"PK"):
            return self._read_zip()
        if start[2:].startswith(LEGACY):
            content, self.storages = _read_legacy(self.data, None)
            return content
        return read_part(self.data)[0]

    def _read_zip(self) -> object:
        files = _zip_entries(self.path, self.data)
        main = [name for name in files if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(main) != 1:
            raise ValueError("it is a zip file, but not one of torch.save: there is no data.pkl in it")
        folder = main[0].removesuffix("data.pkl")
        if bytes(files.get(f"{folder}byteorder", b"little")) != b"little":
            raise ValueError("its numbers are stored in another byte order than little-endian")
        self.storages = {
            name.removeprefix(f"{folder}data/"): data
            for name, data in files.items()
            if name.startswith(f"{folder}data/")
        }
        return read_part(files[main[0]], persistent=_storage_of)[0]

    def tensor(self, node: object) -> Tensor:
        """The tensor that `node` describes, a copy on the CPU. Raises ValueError when it is none or reaches beyond its storage."""
        storage, offset, size, stride = _layout(node)
        if isinstance(storage, Record):
            storage, found = _nested_storage(storage)
        else:
            found = self.storages.get(storage.key) if isinstance(storage, _Storage) else None
        if not isinstance(storage, _Storage) or found is None:
            raise ValueError("its numbers are not in the file")
        width = storage.dtype.itemsize
        if len(found) != storage.numel * width:
            raise ValueError(f"its storage claims {storage.numel} numbers, but has {len(found)} bytes")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) == 0:
            return torch.empty(size, dtype=storage.dtype)
        if last >= storage.numel or math.prod(size) > storage.numel:
            raise ValueError(
                f"its shape {list(size)}, stride {list(stride)} and offset {offset} reach beyond its storage of {storage.numel} numbers"
            )
        numbers = torch.frombuffer(
            bytearray(memoryview(found)[offset * width : (last + 1) * width]), dtype=storage.dtype
        )
        return numbers.as_strided(size, stride).contiguous()


def is_tensor(node: object) -> bool:
    """Whether `node` is a tensor or a parameter, as far as its name says."""
    return isinstance(node, Record) and node.origin.startswith(
        ("torch._utils._rebuild_tensor", "torch._utils._rebuild_parameter")
    )


def shape_of(node: object) -> tuple[int, ...]:
    """The shape of a tensor. Raises ValueError when it is none."""
    return _layout(node)[2]


def class_and_attributes(record: Record) -> tuple[str, dict]:
    """Name and `__dict__` of an object, also of one that brings its own source code."""
    if record.origin == PERSISTENT_CLASS:
        facts = record.arguments[0] if record.arguments and isinstance(record.arguments[0], dict) else {}
        name, state = facts.get("class_name"), facts.get("state")
        return name if isinstance(name, str) else "", state if isinstance(state, dict) else {}
    return record.origin.rsplit(".", 1)[-1], record.attributes()


def module_tensors(module: Record) -> dict[str, object]:
    """What the state dict of a module would hold, by its dotted names: nodes for `tensor`. Raises ValueError for endless nesting."""
    found, todo, visited = {}, [("", module)], 0
    while todo:
        prefix, record = todo.pop()
        attributes = class_and_attributes(record)[1]
        visited += 1 + sum(
            len(_named(attributes.get(group))) for group in ("_parameters", "_buffers", "_modules")
        )
        if visited > MOST_PARTS or len(prefix) > LONGEST_NAME:
            raise ValueError("its modules contain each other without end")
        passing = attributes.get("_non_persistent_buffers_set")
        passing = passing if isinstance(passing, list) and len(passing) < 100 else []
        for group in ("_parameters", "_buffers"):
            for name, node in _named(attributes.get(group)).items():
                if node is not None and not (group == "_buffers" and name in passing):
                    found[f"{prefix}{name}"[:LONGEST_NAME]] = node
        for name, child in _named(attributes.get("_modules")).items():
            if isinstance(child, Record):
                todo.append((f"{prefix}{name}."[: LONGEST_NAME + 1], child))
    return found


def _named(group: object) -> dict:
    items = group.items if isinstance(group, Record) else group
    return items if isinstance(items, dict) else {}


def _layout(node: object) -> tuple[object, int, tuple[int, ...], tuple[int, ...]]:
    """Storage, offset, shape and stride of a tensor or parameter."""
    if (
        isinstance(node, Record)
        and node.origin.startswith("torch._utils._rebuild_parameter")
        and node.arguments
    ):
        node = node.arguments[0]
    names = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
    if not isinstance(node, Record) or node.origin not in names or len(node.arguments) < 4:
        raise ValueError(
            f"it is no ordinary tensor but {(node.origin if isinstance(node, Record) else type(node).__name__)!r:.100}"
        )
    storage, offset, size, stride = node.arguments[:4]
    numbers = (
        [offset, *size, *stride]
        if isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= 16
        else [None]
    )
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 48 for n in numbers):
        raise ValueError("its shape, stride or offset is not made of ordinary numbers")
    return storage, offset, size, stride


def _storage_of(identifier: object) -> _Storage:
    """What a persistent identifier of torch.save stands for."""
    if not isinstance(identifier, tuple) or len(identifier) not in (5, 6) or identifier[0] != "storage":
        raise ValueError("it refers to objects outside of itself")
    _, kind, key, _, numel = identifier[:5]
    name = (
        kind.origin.rsplit(".", 1)[-1].removesuffix("Storage")
        if isinstance(kind, Global) and kind.origin.startswith("torch.")
        else ""
    )
    if name not in DTYPES:
        raise ValueError("it has a storage of an unknown type")
    if not isinstance(key, str) or not isinstance(numel, int) or not 0 <= numel < 1 << 48:
        raise ValueError("it has a storage without a proper key or size")
    if len(identifier) == 6 and identifier[5] is not None:
        raise ValueError("it has a view of a storage, which torch has not written for years")
    return _Storage(DTYPES[name], numel, key)


def _nested_storage(call: Record) -> tuple[_Storage, Bytes]:
    """The storage in a plain pickle: a stream of torch.save inside of a bytes object."""
    data = (
        call.arguments[0]
        if call.origin == "torch.storage._load_from_bytes" and len(call.arguments) == 1
        else None
    )
    if not isinstance(data, Bytes) or not bytes(data[2:16]).startswith(LEGACY):
        raise ValueError("its storage is not stored as torch stores it")
    storage, found = _read_legacy(data, STORAGE_OPCODES)
    if not isinstance(storage, _Storage) or list(found) != [storage.key]:
        raise ValueError("its storage is not the only thing where it is stored")
    return storage, found[storage.key]


def _read_legacy(data: Bytes, most: int | None) -> tuple[object, dict[str, Bytes]]:
    """The object in a stream of the old torch.save, and the bytes of its storages by their keys."""
    limit = {} if most is None else {"most": most}
    known: dict[str, _Storage] = {}

    def persistent(identifier: object) -> _Storage:
        storage = _storage_of(identifier)
        if known.setdefault(storage.key, storage) != storage:
            raise ValueError("it describes one storage in two ways")
        return storage

    _, place = read_part(data, 0, **limit)
    protocol, place = read_part(data, place, **limit)
    system, place = read_part(data, place, **limit)
    if protocol != LEGACY_PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError(
            "it is of an unknown version of torch.save, or of another byte order than little-endian"
        )
    content, place = read_part(data, place, persistent, **limit)
    keys, place = read_part(data, place, **limit)
    if (
        not isinstance(keys, list)
        or len(keys) != len(known)
        or not all(isinstance(key, str) and key in known for key in keys)
    ):
        raise ValueError("the list of its storages does not fit to what uses them")
    view, storages = memoryview(data), {}
    for key in keys:
        storage = known[key]
        start, place = place + 8, place + 8 + storage.numel * storage.dtype.itemsize
        if place > len(view) or int.from_bytes(view[start - 8 : start], "little") != storage.numel:
            raise ValueError("it is cut off, or its storages have other sizes than it says")
        storages[key] = view[start:place]
    return content, storages


def _zip_entries(path: Path, data: memoryview) -> dict[str, memoryview]:
    """The files in a zip file, as views of it: torch.save stores them as they are, so nothing is ever unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # a damaged zip file can raise nearly anything
        raise ValueError(f"it is a damaged zip file ({error})") from error
    if len(entries) > MOST_FILES:
        raise ValueError("it has more files in it than weights need")
    if any(
        entry.compress_type != zipfile.ZIP_STORED
        or entry.file_size != entry.compress_size
        or entry.flag_bits & 1
        for entry in entries
    ):
        raise ValueError("it is a compressed zip file; torch.save makes none")
    files = {}
    for entry in entries:
        header = bytes(data[entry.header_offset : entry.header_offset + 30])
        if entry.header_offset < 0 or len(header) != 30 or not header.startswith(b"PK\x03\x04"):
            raise ValueError("it is a damaged zip file")
        start = (
            entry.header_offset
            + 30
            + int.from_bytes(header[26:28], "little")
            + int.from_bytes(header[28:30], "little")
        )
        if start + entry.file_size > len(data):
            raise ValueError("it is a damaged zip file: a part of it lies outside")
        files[entry.filename] = data[start : start + entry.file_size]
    return files
