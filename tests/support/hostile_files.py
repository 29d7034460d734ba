"""Files that want more than to be read.

Each must end in a clear error, at once, within little memory, and without being obeyed.
"""

import collections
import gzip
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.foreign.safe_pickle import MOST_OPCODES
from pipeline.networks.published import NEEDED, expected_state
from tests.support.published_files import Persistent, Plain, module_of, published_modules, random_state
from tests.support.sizes import SMOKE_SIZES

MARK = "executed"


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def attack() -> Call:
    return Call(os.system, f"touch {MARK}")


def tensor(storage: Any, offset: Any = 0, size: Any = (4,), stride: Any = (1,)) -> Call:
    return Call(
        torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, collections.OrderedDict()
    )


def storage(count: int = 4) -> Call:
    buffer = io.BytesIO()
    whole = torch.storage.TypedStorage(
        wrap_storage=torch.zeros(count).untyped_storage(), dtype=torch.float32, _internal=True
    )
    torch.save(whole, buffer, _use_new_zipfile_serialization=False)
    return Call(torch.storage._load_from_bytes, buffer.getvalue())


def legacy(content: Any, numel: int = 4, keys: Any = ("0",), data: bytes = bytes(16)) -> bytes:
    """A stream of the old torch.save with these parts."""
    parts = [
        0x1950A86A20F9469CFC6C,
        1001,
        {"protocol_version": 1001, "little_endian": True, "type_sizes": {}},
        content,
        list(keys),
    ]
    return b"".join(pickle.dumps(part, 2) for part in parts) + struct.pack("<q", numel) + data


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.arguments if isinstance(value, _Persistent) else None


class _Persistent:
    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments


def with_ids(content: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, 2).dump(content)
    return buffer.getvalue()


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def state(**changes: Any) -> dict[str, Any]:
    """The state dict of a face recognition network in which the tensor `features.bias` is something else."""
    # All else is right, so that no check of names or shapes refuses the file before the attack is met.
    return random_state(expected_state(lambda: NEEDED["identity"].build(SMOKE_SIZES))) | {
        "features.bias": changes["bias"]
    }


def network(bias: Any, protocol: int = 4) -> bytes:
    return pickle.dumps(state(bias=bias), protocol)


def endless_module(shared: bool) -> bytes:
    # Shared children make 2^60 paths through 60 modules: a walk without a memory never ends.
    root = Persistent()
    module = root
    for _ in range(60):
        child = Plain()
        module._modules.update(a=child, b=child if shared else root)
        module = child
    with published_modules():
        return pickle.dumps({"G_ema": root}, 4)


def hostile_files() -> dict[str, bytes]:
    """All of them, by name."""
    width = SMOKE_SIZES.identity.embedding
    whole = io.BytesIO()
    torch.save(state(bias=torch.zeros(width)), whole)
    pair = tensor(storage(), 0, (width,), (1,))
    plain = pickle.dumps(state(bias=torch.zeros(width)), 4)
    huge = _Persistent("storage", torch.FloatStorage, "0", "cpu", 1 << 40)
    ids = state(bias=tensor(huge, 0, (width,)))
    # Deep enough for any recursion; what shall meet the limit of opcodes is longer.
    deep, large, none = 1 << 18, 1 << 20, b"N" * (1 << 20)
    too_many = MOST_OPCODES + 1
    # Every protocol has opcodes of its own for names and calls.
    files = {
        f"system at protocol {protocol}": pickle.dumps({"G_ema": attack(), "a": [attack()]}, protocol)
        for protocol in range(6)
    }
    files |= {
        f"system as a tensor at protocol {protocol}": network(attack(), protocol) for protocol in range(2, 6)
    }
    files |= {
        "nothing": b"",
        "text": b"just words",
        # Opcodes that no pickler writes any more, but that Python's reader still obeys.
        "system alone": b"cos\nsystem\n(S'touch executed'\ntR.",
        "system by an instance": b"(S'touch executed'\nios\nsystem\n.",
        "system by an object": b"(cos\nsystem\nS'touch executed'\no.",
        # A storage is a file within the file, whose reader is another one.
        "system in a storage": network(
            tensor(Call(torch.storage._load_from_bytes, legacy(attack())), 0, (width,))
        ),
        "system for a storage": network(tensor(attack(), 0, (width,))),
        "system in the bytes of a storage": network(
            tensor(Call(torch.storage._load_from_bytes, pickle.dumps(attack())), 0, (width,))
        ),
        "system in a zip file": zipped(
            {"a/data.pkl": pickle.dumps({"features.bias": attack()}, 2), "a/version": b"3"}
        ),
        "system in the old format": legacy(attack()),
        "system as a state": pickle.dumps([attack()], 2)[:-1]
        + b"q\xff"
        + pickle.dumps(attack(), 2)[2:-1]
        + b"b.",
        "a persistent identifier": pickle.dumps([], 2)[:-1] + b"X\x01\x00\x00\x00aQ.",
        "a persistent identifier as text": b"(Pabc\nl.",
        "an extension code": b"\x80\x02\x82\x01.",
        "a buffer from elsewhere": b"\x80\x05\x97.",
        "a function with a state": b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",
        # Views of memory that is not the file's: torch itself checks some of these and not others.
        "a shape without end": network(tensor(storage(), 0, (1 << 40,), (1,))),
        "a shape of huge numbers": network(tensor(storage(), 0, (1 << 8_000_000,), (1,))),
        "a shape beyond the storage": network(pair),
        "an expanded storage": network(tensor(storage(1), 0, (width,), (0,))),
        "a stride beyond the storage": network(tensor(storage(width), 0, (width,), (1 << 30,))),
        "an offset beyond the storage": network(tensor(storage(width), 1, (width,), (1,))),
        "a negative offset": network(tensor(storage(width), -4, (width,), (1,))),
        "a negative stride": network(tensor(storage(width), width - 1, (width,), (-1,))),
        "a storage that claims more than it has": network(
            tensor(Call(torch.storage._load_from_bytes, legacy(0, 1 << 40)), 0, (width,))
        ),
        "a storage within a storage": network(
            tensor(Call(torch.storage._load_from_bytes, legacy(storage())), 0, (width,))
        ),
        "an old file that claims more than it has": legacy(0, 4)[:2] + with_ids(ids),
        "an old file of a huge storage": b"".join(
            [
                pickle.dumps(0x1950A86A20F9469CFC6C, 2),
                pickle.dumps(1001, 2),
                pickle.dumps({"little_endian": True}, 2),
                with_ids(ids),
            ]
        )
        + pickle.dumps(["0"], 2)
        + struct.pack("<q", 1 << 40),
        "a zip file of a huge storage": zipped({"a/data.pkl": with_ids(ids), "a/data/0": bytes(16)}),
        # 256 MB of zeros in some hundred kilobytes.
        "a zip bomb": zipped(
            {"a/data.pkl": bytes(1 << 20), "a/data/0": bytes(1 << 28)}, zipfile.ZIP_DEFLATED
        ),
        "a zip file of something else": zipped({"a/b.txt": b"hello"}),
        "a cut zip file": whole.getvalue()[: len(whole.getvalue()) // 2],
        "a zip file with a cut end": whole.getvalue()[:-9],
        # Downloads that were broken off, and files that were packed once more.
        "gzip": gzip.compress(plain),
        "a cut pickle": plain[: len(plain) // 2],
        "a pickle without its last byte": plain[:-1],
        # Lengths that a reader must not allocate before it has seen as many bytes.
        "bytes without end": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab.",
        "text without end": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fab.",
        "a number without end": b"\x80\x02\x8b\xff\xff\xff\x7fab.",
        # To make a number of so many digits takes time that grows with their square.
        "a number as long text": b"I" + b"9" * 5_000_000 + b"\n.",
        "a line without end": b"c" + b"a" * 5_000_000,
        "a memo of four thousand millions": b"\x80\x02r\xff\xff\xff\xff.",
        "tuples within tuples": b"\x80\x02)" + b"\x85" * deep + b".",
        "lists within lists": b"\x80\x02" + b"]" * deep + b"a" * (deep - 1) + b".",
        "dicts without end": b"\x80\x02(" + b"}" * too_many + b"l.",
        "marks without end": b"\x80\x02" + b"(" * too_many + b".",
        "names without end": b"\x80\x02(" + b"ca\nb\n" * deep + b"l.",
        "objects without end": b"\x80\x02(" + b"ca\nb\n)\x81" * (too_many // 3) + b"l.",
        # The memo says something large in two bytes: each use would hash, copy or encode it anew.
        "a long key over and over": b"\x80\x02(" + none + b"tq\x00}" + b"h\x00Ns" * (deep // 8) + b".",
        "pairs over and over": b"\x80\x02ccollections\nOrderedDict\nq\x00("
        + b"]" * large
        + b"l\x85q\x01"
        + b"h\x00h\x01R" * (deep // 8)
        + b".",
        "text over and over": b"\x80\x02c_codecs\nencode\nq\x00X"
        + struct.pack("<i", large)
        + b"a" * large
        + b"X\x06\x00\x00\x00latin1\x86q\x01"
        + b"h\x00h\x01R" * (deep // 8)
        + b".",
        "a list in itself": b"\x80\x02]q\x00h\x00a.",
        "a module in itself": endless_module(shared=False),
        "modules that double": endless_module(shared=True),
        "a description without end": deep_description(),
        "a head model of a huge array": head_model(
            np.zeros(4), lambda data: data.replace(b"K\x04\x85", b"J\x00\x00\x00\x70\x85")
        ),
        "a head model that runs": head_model(attack()),
    }
    return files


def head_model(template: Any, change: Callable[[bytes], bytes] = bytes) -> bytes:
    return change(pickle.dumps({"v_template": template}, 2))


def deep_description() -> bytes:
    # A message that prints it would have 2^150 words.
    deep: Any = {}
    for _ in range(150):
        deep = {"a": deep, "b": deep}
    module = module_of({"w_avg": torch.zeros(2)}, "Deep", _init_kwargs=deep)
    with published_modules():
        return pickle.dumps({"G_ema": module}, 4)


def mutated(whole: bytes, draw: np.random.Generator) -> bytes:
    """A file with some bytes changed, cut out, doubled or cut off."""
    data = bytearray(whole)
    for _ in range(draw.integers(1, 6)):
        place = int(draw.integers(len(data)))
        length = int(draw.integers(1, 9))
        match draw.integers(5):
            case 0 | 1:
                data[place] = draw.integers(256)
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = data[place // 2 : place // 2 + length]
            case 4:
                data[place : place + length] = draw.bytes(length)
        if len(data) < 16:
            break
    return bytes(data[: draw.integers(1, len(data))] if draw.random() < 0.1 else data)


def mutated_files(count: int, folder: Path) -> Iterator[tuple[str, bytes]]:
    """`count` of each kind of file, always the same ones."""
    some = {
        "encoder.weight": torch.arange(12.0).view(3, 4),
        "encoder.bias": torch.ones(3, dtype=torch.float16),
        "count": torch.tensor(3),
    }
    module = module_of(
        some | {"w_avg": torch.ones(2)}, "Some", _init_kwargs={"a": np.float32(1), "b": [1, "two"]}
    )
    bases = {}
    with published_modules():
        bases |= {
            f"module{protocol}": pickle.dumps({"G_ema": module, "D": None}, protocol) for protocol in (2, 4)
        }
    for name, new in (("zip", True), ("old", False)):
        buffer = io.BytesIO()
        torch.save(some, buffer, _use_new_zipfile_serialization=new)
        bases[name] = buffer.getvalue()
    for name, whole in bases.items():
        # The same mutations in every run: one that is found can be looked at again.
        draw = np.random.default_rng([7, *name.encode()])
        for i in range(count):
            yield f"{name} {i}", mutated(whole, draw)
