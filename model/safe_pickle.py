"""Reading foreign pickles as data: nothing that a file names is imported or called (facts 10.2).

Whatever a file constructs becomes an inert Record that keeps what it was given. The opcodes of Python's own unpickler that make plain data are
used as they are; those that would import, call, set attributes or reach outside of the file are replaced or refused. What a hostile file can
make us do is bounded by MOST_OPCODES, as no single opcode costs more than the bytes that it takes from the file.
"""

import io
import math
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

LARGEST_FILE = 1 << 30  # bytes; the head model has about 50 MB
MOST_OPCODES = 2_000_000
LONGEST_NAME = 500  # characters of a global
LARGE_BYTES = 1024  # from here on bytes stay where they are in the file

Bytes = bytes | memoryview


class Global:
    """A name that the file would import."""

    __slots__ = ("origin",)

    def __init__(self, origin: str) -> None:
        self.origin = origin


class Record:
    """An object of a class that is not loaded, or the result of a function that is not called.

    `origin` is the dotted name in the file, `arguments` what it was called with; `state`, `items` and `parts` what it was given afterwards as
    its attributes, as a dict and as a list.
    """

    __slots__ = ("arguments", "items", "origin", "parts", "state")

    def __init__(self, origin: str, arguments: tuple = ()) -> None:
        self.origin, self.arguments = origin, arguments
        self.state: object = {}
        self.items: dict = {}
        self.parts: list = []

    def attributes(self) -> dict:
        """The object's `__dict__`."""
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state  # (dict, slots)
        return state if isinstance(state, dict) else {}


def _put(target: dict, pairs: Iterable[tuple[object, object]]) -> None:
    for key, value in pairs:
        # What we look for has simple keys; hashing others would let one big key cost its length as often as it is used.
        if key is None or isinstance(key, str | bool) or (isinstance(key, int) and -(1 << 63) <= key < 1 << 64):
            target[key] = value
        elif isinstance(key, bytes) and len(key) < LARGE_BYTES:
            target[key.decode("latin1")] = value


def _ordered_dict(arguments: tuple) -> dict:
    pairs = arguments[0] if arguments and isinstance(arguments[0], list | tuple) else ()
    made: dict = {}
    _put(made, (pair for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2))
    return made


def _reconstructor(arguments: tuple) -> Record:
    made = Record(arguments[0].origin if arguments and isinstance(arguments[0], Global) else "")
    if len(arguments) > 2 and isinstance(arguments[2], dict):
        made.items = arguments[2]
    return made


def _only(arguments: tuple) -> object:
    return arguments[0] if arguments else []


_FUNCTIONS: dict[str, Callable[[tuple], object]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _only,
    **{f"{module}.{name}": _only for module in ("builtins", "__builtin__") for name in ("list", "tuple", "set", "frozenset")},
    "copyreg._reconstructor": _reconstructor,
    "copy_reg._reconstructor": _reconstructor,
}


class _Reader(pickle._Unpickler):
    # The unpickler written in Python, not the C one: that one allocates whatever memo index a file claims to use, and cannot leave large
    # bytes in the file. Sets are read as lists.

    def __init__(self, data: Bytes | bytearray, start: int, persistent: Callable[[object], object] | None, most: int) -> None:
        self.view, self.place, self.persistent, self.left = memoryview(data), start, persistent, most
        self.memo: dict[int, object] = {}
        self.encoding, self.errors, self.proto = "latin1", "strict", 0
        self.text_left = 2 * len(self.view)

    def load(self) -> object:
        self.metastack: list = []
        self.stack: list = []
        self.append = self.stack.append
        while (code := self.read(1)) != pickle.STOP:
            self.left -= 1
            if self.left < 0:
                raise ValueError("it has more parts than it can honestly have")
            handler = _HANDLERS.get(code[0])
            if handler is None:
                raise ValueError(f"opcode {code!r} at byte {self.place - 1} is not accepted")
            handler(self)
        return self.stack.pop()

    def read(self, count: int) -> bytes:
        return bytes(self.part(count))

    def part(self, count: int) -> memoryview:
        start, self.place = self.place, self.place + count
        if count < 0 or self.place > len(self.view):
            raise ValueError("it is cut off")
        return self.view[start : self.place]

    def readline(self) -> bytes:
        window = 256
        while True:
            line = bytes(self.view[self.place : self.place + window])
            end = line.find(b"\n") + 1
            if end:
                self.place += end
                return line[:end]
            if self.place + window >= len(self.view):
                raise ValueError("it is cut off")
            window *= 4

    def load_frame(self) -> None:
        self.read(8)  # a hint for buffered reading

    def load_bytes(self, width: int) -> None:
        count = int.from_bytes(self.read(width), "little")
        data = self.part(count)
        self.append(data if count >= LARGE_BYTES else bytes(data))

    def load_name(self) -> None:
        self._name(self.readline()[:-1].decode(), self.readline()[:-1].decode())

    def load_stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._name(module, name)

    def _name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or max(len(module), len(name)) > LONGEST_NAME:
            raise ValueError("it names something that has no proper name")
        self.append(Global(f"{module}.{name}"))

    def load_call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise ValueError("it calls something that has no name")
        if function.origin == "_codecs.encode":
            self.append(self._encoded(*arguments))
        elif function.origin in _FUNCTIONS:
            self.left -= len(arguments[0]) if arguments and isinstance(arguments[0], list | tuple) else 0
            self.append(_FUNCTIONS[function.origin](arguments))
        else:
            self.append(Record(function.origin, arguments))

    def load_call_keywords(self) -> None:
        self.stack.pop()
        self.load_call()

    def _encoded(self, text: str, encoding: str = "") -> bytes:
        if encoding != "latin1" or not isinstance(text, str):
            raise ValueError("bytes that are encoded as anything but latin1 are not accepted")
        self.text_left -= len(text)
        if self.text_left < 0:
            raise ValueError("it decodes the same text over and over")
        return text.encode("latin1")

    def load_state(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, dict):  # an ordered dict may have attributes, which are of no use
            raise ValueError("it gives a state to something that can have none")

    def load_persistent(self) -> None:
        if self.persistent is None:
            raise ValueError("it refers to objects outside of itself")
        self.append(self.persistent(self.stack.pop()))

    def load_empty_list(self) -> None:
        self.append([])

    def load_list(self) -> None:
        self.append(self.pop_mark())

    def load_dict(self) -> None:
        made, items = {}, self.pop_mark()
        _put(made, zip(items[::2], items[1::2], strict=True))
        self.append(made)

    def load_item(self) -> None:
        self._extend([self.stack.pop()])

    def load_items(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list) -> None:
        target = self.stack[-1]
        parts = target.parts if isinstance(target, Record) else target
        if not isinstance(parts, list):
            raise ValueError("it appends to something that is no list")
        parts.extend(items)

    def load_pair(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([(key, value)])

    def load_pairs(self) -> None:
        items = self.pop_mark()
        self._update(zip(items[::2], items[1::2], strict=True))

    def _update(self, pairs: Iterable[tuple[object, object]]) -> None:
        target = self.stack[-1]
        items = target.items if isinstance(target, Record) else target
        if not isinstance(items, dict):
            raise ValueError("it puts an item into something that is no dict")
        _put(items, pairs)


# fmt: off
_PLAIN = [
    "PROTO", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4",
    "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "TUPLE",
    "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE",
]
# fmt: on
_HANDLERS: dict[int, Callable[[_Reader], None]] = {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _PLAIN}
for _names, _handler in {
    "FRAME": _Reader.load_frame,
    "SHORT_BINBYTES": lambda reader: reader.load_bytes(1),
    "BINBYTES": lambda reader: reader.load_bytes(4),
    "BINBYTES8 BYTEARRAY8": lambda reader: reader.load_bytes(8),
    "GLOBAL": _Reader.load_name,
    "STACK_GLOBAL": _Reader.load_stack_name,
    "REDUCE NEWOBJ": _Reader.load_call,
    "NEWOBJ_EX": _Reader.load_call_keywords,
    "BUILD": _Reader.load_state,
    "BINPERSID": _Reader.load_persistent,
    "EMPTY_LIST EMPTY_SET": _Reader.load_empty_list,
    "LIST FROZENSET": _Reader.load_list,
    "DICT": _Reader.load_dict,
    "APPEND": _Reader.load_item,
    "APPENDS ADDITEMS": _Reader.load_items,
    "SETITEM": _Reader.load_pair,
    "SETITEMS": _Reader.load_pairs,
}.items():
    _HANDLERS |= {getattr(pickle, _name)[0]: _handler for _name in _names.split()}


def read_part(
    data: Bytes | bytearray, start: int = 0, persistent: Callable[[object], object] | None = None, most: int = MOST_OPCODES
) -> tuple[object, int]:
    """The object in the pickle that begins at byte `start`, and where the pickle ends.

    Bytes of LARGE_BYTES or more are views of `data`. `persistent` says what a persistent identifier stands for; without it they are refused.
    Raises ValueError for whatever is not readable.
    """
    reader = _Reader(data, start, persistent, most)
    try:
        return reader.load(), reader.place
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(f"not a readable pickle ({error})") from error


def read_pickle(data: Bytes | bytearray) -> object:
    """The object in a pickle, arrays as Records until `real_value`. Raises ValueError for whatever is not readable."""
    return read_part(data)[0]


def real_value(value: object) -> object:
    """A numpy array for the Record of an array, of a chumpy array or of a scipy sparse matrix; anything else unchanged.

    For an object array without dimensions, the one object in it.
    """
    if not isinstance(value, Record):
        return value
    if value.origin in ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"):
        if not isinstance(value.state, tuple) or len(value.state) != 5:
            raise ValueError("a numpy array is incomplete")
        _, shape, dtype, fortran, data = value.state
        return _array(shape, dtype, "F" if fortran else "C", data)
    if value.origin in ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"):  # pickle protocol 5
        if len(value.arguments) != 4:
            raise ValueError("a numpy array is incomplete")
        data, dtype, shape, order = value.arguments
        return _array(shape, dtype, order, data)
    if value.origin.startswith("chumpy.") and "x" in value.attributes():
        return real_value(value.attributes()["x"])
    if value.origin.startswith("scipy.sparse"):
        return _dense(value)
    return value


def _is_shape(value: object) -> bool:
    return isinstance(value, tuple) and len(value) <= 16 and all(isinstance(n, int) and 0 <= n < 1 << 40 for n in value)


def _array(shape: object, dtype: object, order: object, data: object) -> object:
    if not _is_shape(shape):
        raise ValueError("a numpy array has no proper shape")
    if not isinstance(dtype, Record) or dtype.origin != "numpy.dtype" or not dtype.arguments or not isinstance(dtype.arguments[0], str):
        raise ValueError("a numpy array has no proper type")
    code = dtype.arguments[0]
    if code.startswith("O"):
        if shape != () or not isinstance(data, list) or len(data) != 1:
            raise ValueError("an array of objects is not accepted")
        return real_value(data[0])
    if code not in ("b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"):
        raise ValueError(f"a numpy array of type {code!r:.20} is not accepted")
    kind = np.dtype((">" if isinstance(dtype.state, tuple) and dtype.state[1:2] == (">",) else "<") + code)
    data = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(data, Bytes) or order not in ("C", "F") or len(data) != math.prod(shape) * kind.itemsize:
        raise ValueError(f"a numpy array of shape {shape} does not hold that many numbers")
    return np.frombuffer(data, kind).reshape(shape, order=order)


def _dense(matrix: Record) -> np.ndarray:
    kind, state = matrix.origin.rsplit(".", 1)[1][:3], matrix.attributes()
    shape = state.get("_shape", state.get("shape"))
    if kind not in ("csc", "csr") or not _is_shape(shape) or len(shape) != 2 or math.prod(shape) > 10_000_000:
        raise ValueError(f"a sparse matrix {matrix.origin} of such a shape is not accepted")
    major, minor = shape if kind == "csr" else shape[::-1]
    data, indices, starts = (real_value(state.get(key)) for key in ("data", "indices", "indptr"))
    if not all(isinstance(a, np.ndarray) and a.ndim == 1 for a in (data, indices, starts)):
        raise ValueError("a sparse matrix lacks its arrays")
    steps = np.diff(starts.astype(np.int64))
    if len(starts) != major + 1 or (steps < 0).any() or steps.sum() != len(data) or len(indices) != len(data):
        raise ValueError("the arrays of a sparse matrix do not fit together")
    if len(indices) and not 0 <= indices.min() <= indices.max() < minor:
        raise ValueError("a sparse matrix has an index outside of its shape")
    dense = np.zeros((major, minor))
    np.add.at(dense, (np.repeat(np.arange(major), steps), indices), data)
    return dense if kind == "csr" else dense.T


def read_bytes(path: Path) -> bytes:
    """The file's bytes. Raises ValueError when it is missing or larger than a head model can be."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"{path}: larger than {LARGEST_FILE} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def read_mapping(path: Path) -> dict[str, object]:
    """A dict that was pickled (.pkl) or saved as a numpy object array (.npy), its values decoded. Raises ValueError naming the file."""
    data, start = read_bytes(path), 0
    try:
        if path.suffix == ".npy":
            stream = io.BytesIO(data)
            version = np.lib.format.read_magic(stream)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read_header(stream)
            if dtype != np.dtype(object) or shape != ():
                raise ValueError("expected one dict in it, found an array of numbers")
            start = stream.tell()
        content = real_value(read_part(data, start)[0])
        if not isinstance(content, dict):
            raise ValueError("expected a dict in it")
        return {key: real_value(value) for key, value in content.items() if isinstance(key, str)}
    except Exception as error:  # values of odd types fail in many ways as well
        raise ValueError(f"{path}: {error}") from error
