"""Reading foreign torch files as data (facts 10.1, 10.2).

They are pickles of whole modules and files of torch.save, old and new. A tensor stays a view of the file
until it is asked for; then its shape, stride and offset are checked against the bytes of its storage.
"""

import math
import mmap
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.foreign.other_files import HEAD, TEXT_OPCODES, mangled_line_ends, other_kind, with_own_line_ends
from model.foreign.safe_pickle import Bytes, Global, Record, read_part

LARGEST_FILE = 16 << 30  # bytes; the published Psi has about 2 GB
# The magic number that torch.save wrote before it wrote zip files, after the protocol.
LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
LEGACY_PROTOCOL = 1001
STORAGE_OPCODES = 1000  # a storage that is saved alone needs about 50
# What a network can have at the very most.
MOST_PARTS, MOST_FILES, LONGEST_NAME = 1_000_000, 100_000, 1000
LARGEST_NUMBER = 1 << 48  # of values of a storage, and of what says where a tensor lies in it
MOST_DIMENSIONS = 16
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
# Called with a dict that holds source code, which stays unread.
PERSISTENT_CLASS = "torch_utils.persistence._reconstruct_persistent_obj"
TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
PARAMETER = "torch._utils._rebuild_parameter"
ZIP_HEADER = 30  # bytes of the header before the name of a file in a zip file


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
                # The pages of a map are the file's own: a checkpoint of 2 GB takes no memory before its
                # tensors are wanted.
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self.data = memoryview(pages)
            self.storages: Mapping[str, Bytes] = {}
            self.content = self._read()
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise ValueError(f"{path}: {self._told() or error}") from error

    def _told(self) -> str:
        """What a file that is not readable is, when its bytes say it."""
        data = getattr(self, "data", memoryview(b""))
        return other_kind(bytes(data[:HEAD])) or mangled_line_ends(data)

    def _read(self) -> object:
        start = bytes(self.data[:16])
        if start.startswith(b"PK"):
            return self._read_zip()
        if start[2:].startswith(LEGACY):
            # The old format has its storages behind the object, one after the other.
            content, self.storages = _read_legacy(self.data, None)
            return content
        data = with_own_line_ends(self.data.tobytes()) if start[:1] in TEXT_OPCODES else self.data
        content, _ = read_part(data)
        return content

    def _read_zip(self) -> object:
        files = _zip_entries(self.path, self.data)
        ends = [name for name in files if name.endswith("/data.pkl")]
        mains = [name for name in ends if name.count("/") == 1]
        if len(mains) != 1:
            inside = next(iter(files), "nothing")
            raise ValueError(
                f"it is a zip file with {inside!r:.60} in it, not one of torch.save; unpack it first"
            )
        (main,) = mains
        folder = main.removesuffix("data.pkl")
        # Older versions of torch say no byte order; nearly every machine is little-endian.
        order = files.get(f"{folder}byteorder", b"little")
        if bytes(order) != b"little":
            raise ValueError("its numbers are stored in another byte order than little-endian")
        inside = f"{folder}data/"
        storages = {}
        for name, data in files.items():
            if name.startswith(inside):
                storages[name.removeprefix(inside)] = data
        self.storages = storages
        content, _ = read_part(files[main], persistent=_storage_of)
        return content

    def tensor(self, node: object) -> Tensor:
        """The tensor that `node` describes, a copy on the CPU.

        Raises ValueError when it is none or reaches beyond its storage.
        """
        storage, offset, size, stride = _layout(node)
        storage, found = self._found(storage)
        width = storage.dtype.itemsize
        if len(found) != storage.numel * width:
            raise ValueError(f"its storage claims {storage.numel} numbers, but has {len(found)} bytes")
        count = math.prod(size)
        if count == 0:
            return torch.empty(size, dtype=storage.dtype)
        last = offset
        for n, step in zip(size, stride, strict=True):
            last += (n - 1) * step
        if last >= storage.numel or count > storage.numel:
            layout = f"shape {list(size)}, stride {list(stride)} and offset {offset}"
            raise ValueError(f"its {layout} reach beyond its storage of {storage.numel} numbers")
        # Only the tensor's own stretch is copied, as a storage may be shared by many tensors.
        start = offset * width
        end = (last + 1) * width
        own_bytes = bytearray(memoryview(found)[start:end])
        numbers = torch.frombuffer(own_bytes, dtype=storage.dtype)
        return numbers.as_strided(size, stride).contiguous()

    def _found(self, storage: object) -> tuple[_Storage, Bytes]:
        """What a tensor names as its storage, and its bytes."""
        found = None
        if isinstance(storage, Record):
            storage, found = _nested_storage(storage)
        elif isinstance(storage, _Storage):
            found = self.storages.get(storage.key)
        if not isinstance(storage, _Storage) or found is None:
            raise ValueError("its numbers are not in the file")
        return storage, found


def is_tensor(node: object) -> bool:
    """Whether `node` is a tensor or a parameter, as far as its name says."""
    if isinstance(node, Tensor):
        return True
    return isinstance(node, Record) and node.origin.startswith((TENSORS[-1], PARAMETER))


def shape_of(node: object) -> tuple[int, ...]:
    """The shape of a tensor. Raises ValueError when it is none."""
    if isinstance(node, Tensor):
        return tuple(node.shape)
    _, _, size, _ = _layout(node)
    return size


def class_and_attributes(record: Record) -> tuple[str, dict]:
    """Name and `__dict__` of an object, also of one that brings its own source code."""
    if record.origin != PERSISTENT_CLASS:
        name = record.origin.rsplit(".", 1)[-1]
        return name, record.attributes()
    facts = record.arguments[0] if record.arguments else {}
    if not isinstance(facts, dict):
        return "", {}
    name = facts.get("class_name")
    state = facts.get("state")
    if not isinstance(name, str):
        name = ""
    return name, state if isinstance(state, dict) else {}


def module_tensors(module: Record) -> dict[str, object]:
    """What the state dict of a module would hold, by its dotted names: nodes for `tensor`.

    Raises ValueError for endless nesting.
    """
    found = {}
    todo = [("", module)]
    visited = 0
    while todo:
        prefix, record = todo.pop()
        _, attributes = class_and_attributes(record)
        parameters = _named(attributes.get("_parameters"))
        buffers = _named(attributes.get("_buffers"))
        modules = _named(attributes.get("_modules"))
        # A module may stand in several places, so that what was visited is counted and not remembered.
        visited += 1
        for group in (parameters, buffers, modules):
            visited += len(group)
        if visited > MOST_PARTS or len(prefix) > LONGEST_NAME:
            raise ValueError("its modules contain each other without end")

        passing = attributes.get("_non_persistent_buffers_set")
        if not isinstance(passing, list) or len(passing) >= 100:
            passing = []
        kept = {name: node for name, node in buffers.items() if name not in passing}
        for name, node in (*parameters.items(), *kept.items()):
            if node is not None:
                whole = f"{prefix}{name}"
                found[whole[:LONGEST_NAME]] = node
        # One letter more is what the check above notices.
        for name, child in modules.items():
            if isinstance(child, Record):
                whole = f"{prefix}{name}."
                todo.append((whole[: LONGEST_NAME + 1], child))
    return found


def _named(group: object) -> dict:
    items = group.items if isinstance(group, Record) else group
    return items if isinstance(items, dict) else {}


def _layout(node: object) -> tuple[object, int, tuple[int, ...], tuple[int, ...]]:
    """Storage, offset, shape and stride of a tensor or parameter."""
    # A parameter is a call with the tensor as its first argument.
    if isinstance(node, Record) and node.origin.startswith(PARAMETER) and node.arguments:
        node = node.arguments[0]
    if not isinstance(node, Record):
        raise ValueError(f"it is no ordinary tensor but {type(node).__name__!r:.100}")
    if node.origin not in TENSORS or len(node.arguments) < 4:
        raise ValueError(f"it is no ordinary tensor but {node.origin!r:.100}")
    storage, offset, size, stride = node.arguments[:4]
    tuples = isinstance(size, tuple) and isinstance(stride, tuple)
    if not tuples or len(size) != len(stride) or len(size) > MOST_DIMENSIONS:
        raise ValueError("its shape and its stride do not fit together")
    numbers = (offset, *size, *stride)
    if not all(_is_place(number) for number in numbers):
        raise ValueError("its shape, stride or offset is not made of ordinary numbers")
    return storage, offset, size, stride


def _is_place(number: object) -> bool:
    # To Python True and False are integers.
    if not isinstance(number, int) or isinstance(number, bool):
        return False
    return 0 <= number < LARGEST_NUMBER


def _storage_of(identifier: object) -> _Storage:
    """What a persistent identifier of torch.save stands for."""
    if not isinstance(identifier, tuple) or len(identifier) not in (5, 6):
        raise ValueError("it refers to objects outside of itself")
    what, kind, key, _, numel, *view = identifier
    if what != "storage":
        raise ValueError("it refers to objects outside of itself")
    name = ""
    if isinstance(kind, Global) and kind.origin.startswith("torch."):
        kind_name = kind.origin.rsplit(".", 1)[-1]
        name = kind_name.removesuffix("Storage")
    if name not in DTYPES:
        raise ValueError("it has a storage of an unknown type")
    if not isinstance(key, str) or not _is_place(numel):
        raise ValueError("it has a storage without a proper key or size")
    if view not in ([], [None]):
        raise ValueError("it has a view of a storage, which torch has not written for years")
    return _Storage(DTYPES[name], numel, key)


def _nested_storage(call: Record) -> tuple[_Storage, Bytes]:
    """The storage in a plain pickle: a stream of torch.save inside of a bytes object."""
    data = None
    if call.origin == "torch.storage._load_from_bytes" and len(call.arguments) == 1:
        data = call.arguments[0]
    start = bytes(data[2:16]) if isinstance(data, Bytes) else b""
    if not start.startswith(LEGACY):
        raise ValueError("its storage is not stored as torch stores it")
    storage, found = _read_legacy(data, STORAGE_OPCODES)
    if not isinstance(storage, _Storage) or list(found) != [storage.key]:
        raise ValueError("its storage is not the only thing where it is stored")
    return storage, found[storage.key]


def _read_legacy(data: Bytes, most: int | None) -> tuple[object, dict[str, Bytes]]:
    """The object in a stream of the old torch.save, and the bytes of its storages by their keys.

    After three pickles that say what it is come the object and the list of keys, then each storage's number
    of values in eight bytes and the values.
    """
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
    order = system.get("little_endian") if isinstance(system, dict) else None
    little = order is True
    if protocol != LEGACY_PROTOCOL or not little:
        raise ValueError(
            "it is of an unknown version of torch.save, or of another byte order than little-endian"
        )
    content, place = read_part(data, place, persistent, **limit)
    keys, place = read_part(data, place, **limit)
    listed = isinstance(keys, list) and len(keys) == len(known)
    if not listed or not all(isinstance(key, str) and key in known for key in keys):
        raise ValueError("the list of its storages does not fit to what uses them")
    storages = [known[key] for key in keys]
    return content, _storages(memoryview(data), place, storages)


def _storages(
    view: memoryview,
    place: int,
    wanted: list[_Storage],
) -> dict[str, memoryview]:
    """The bytes of storages by their keys, which lie one behind the other from `place` on."""
    storages = {}
    for storage in wanted:
        start = place + 8
        count = int.from_bytes(view[place:start], "little")
        size = storage.numel * storage.dtype.itemsize
        place = start + size
        if place > len(view) or count != storage.numel:
            raise ValueError("it is cut off, or its storages have other sizes than it says")
        storages[storage.key] = view[start:place]
    return storages


def _zip_entries(path: Path, data: memoryview) -> dict[str, memoryview]:
    """The files in a zip file, as views of it: torch.save stores them as they are, so nothing is unpacked."""
    if not zipfile.is_zipfile(path):
        raise ValueError("it is cut off: a zip file without its end. Download it again")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:
        # A damaged zip file can raise nearly anything.
        raise ValueError(f"it is a damaged zip file ({error})") from error
    if len(entries) > MOST_FILES:
        raise ValueError("it has more files in it than weights need")
    if not all(_is_stored(entry) for entry in entries):
        raise ValueError("it is a compressed zip file; torch.save makes none")
    return {entry.filename: _entry(entry, data) for entry in entries}


def _entry(entry: zipfile.ZipInfo, data: memoryview) -> memoryview:
    """The bytes of a file, which lie behind its header, its name and what else its header announces."""
    header_start = entry.header_offset
    header_end = header_start + ZIP_HEADER
    header = bytes(data[header_start:header_end])
    whole = header_start >= 0 and len(header) == ZIP_HEADER
    if not whole or not header.startswith(b"PK\x03\x04"):
        raise ValueError("it is a damaged zip file")
    name_length = int.from_bytes(header[26:28], "little")
    extra_length = int.from_bytes(header[28:30], "little")
    start = header_end + name_length + extra_length
    end = start + entry.file_size
    if end > len(data):
        raise ValueError("it is a damaged zip file: a part of it lies outside")
    return data[start:end]


def _is_stored(entry: zipfile.ZipInfo) -> bool:
    """Whether a file is neither compressed nor encrypted."""
    plain = entry.compress_type == zipfile.ZIP_STORED
    same_size = entry.file_size == entry.compress_size
    encrypted = entry.flag_bits & 1
    return plain and same_size and not encrypted
