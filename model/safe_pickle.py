"""Reading foreign pickles as data: nothing that a file names is imported or called (facts 10.2).

Every global becomes an inert stub; numpy arrays are rebuilt by our own decoder from their bytes after checking them against the shape.
"""

import io
import math
import pickle
import pickletools
from pathlib import Path

import numpy as np

LARGEST_FILE = 1 << 30  # bytes; the head model has about 50 MB
MOST_OPCODES = 2_000_000
MOST_TUPLES = 10_000  # bounds the nesting, which the interpreter follows on its own stack when it hashes a tuple


class Stub:
    """An object of a class that is not loaded: keeps its state, ignores how it was constructed."""

    origin = ""  # dotted name in the pickle

    def __init__(self, *arguments, **keywords):
        self.state: dict = {}

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else {"": state}

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass


class _DType:
    """A numpy type as the pickle describes it: code such as 'f8', then a state that holds the byte order."""

    def __init__(self, code: object, *ignored):
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1] if state[1] in "<>" else "<"

    def real(self) -> np.dtype:
        if self.code not in ("b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"):
            raise ValueError(f"a numpy array of type {self.code!r} is not accepted")
        return np.dtype(self.order + self.code)


class _Array:
    """A numpy array as the pickle describes it."""

    def __init__(self, *ignored):
        self.state: tuple | None = None

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def real(self) -> object:
        """The array; for an object array without dimensions, the one object in it."""
        if self.state is None or len(self.state) != 5:
            raise ValueError("a numpy array is incomplete")
        _, shape, dtype, fortran, data = self.state
        if not isinstance(dtype, _DType) or not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError("a numpy array has no proper type or shape")
        if dtype.code.startswith("O"):
            if shape != () or not isinstance(data, list) or len(data) != 1:
                raise ValueError("an array of objects is not accepted")
            return data[0]
        data = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.real().itemsize:
            raise ValueError(f"a numpy array of shape {shape} does not hold that many numbers")
        return np.frombuffer(data, dtype.real()).reshape(shape, order="F" if fortran else "C")


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"bytes encoded as {encoding!r} are not accepted")
    return text.encode("latin1")


def _reconstructor(cls: type, *ignored) -> Stub:
    return cls() if isinstance(cls, type) and issubclass(cls, Stub) else Stub()


_KNOWN = {
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.ndarray": _Array,
    "numpy.dtype": _DType,
    "_codecs.encode": _encode,
    "copy_reg._reconstructor": _reconstructor,
    "copyreg._reconstructor": _reconstructor,
    "collections.OrderedDict": dict,
}


class _Reader(pickle._Unpickler):
    # The unpickler written in Python, not the C one: that one allocates whatever memo index a file claims to use.

    def find_class(self, module: str, name: str) -> object:
        origin = f"{module}.{name}"
        return _KNOWN.get(origin) or type("Stub", (Stub,), {"origin": origin})

    def persistent_load(self, identifier: object) -> object:
        raise ValueError("the file refers to objects outside of itself")


def read_pickle(data: bytes) -> object:
    """The object in a pickle; arrays inside stay undecoded until `real_value`. Raises ValueError for whatever is not readable."""
    try:
        tuples = 0
        for count, (opcode, _, _) in enumerate(pickletools.genops(data)):
            tuples += opcode.name.startswith("TUPLE")
            if opcode.name in ("EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "FROZENSET", "ADDITEMS", "INST"):
                raise ValueError(f"opcode {opcode.name} is not accepted")
            if count > MOST_OPCODES or tuples > MOST_TUPLES:
                raise ValueError("it has more parts than a head model can have")
        return _Reader(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(f"not a readable pickle ({error})") from error


def real_value(value: object) -> object:
    """A numpy array for an undecoded array, a chumpy array or a scipy sparse matrix; anything else unchanged."""
    if isinstance(value, _Array):
        return real_value(value.real())
    if isinstance(value, Stub) and value.origin.startswith("chumpy.") and "x" in value.state:
        return real_value(value.state["x"])
    if isinstance(value, Stub) and value.origin.startswith("scipy.sparse"):
        return _dense(value)
    return value


def _dense(matrix: Stub) -> np.ndarray:
    kind = matrix.origin.rsplit(".", 1)[1][:3]
    shape = matrix.state.get("_shape", matrix.state.get("shape"))
    if kind not in ("csc", "csr") or not isinstance(shape, tuple) or len(shape) != 2 or math.prod(shape) > 10_000_000:
        raise ValueError(f"a sparse matrix {matrix.origin} of shape {shape} is not accepted")
    major, minor = shape if kind == "csr" else shape[::-1]
    data, indices, starts = (real_value(matrix.state.get(key)) for key in ("data", "indices", "indptr"))
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
    data = read_bytes(path)
    try:
        if path.suffix == ".npy":
            stream = io.BytesIO(data)
            version = np.lib.format.read_magic(stream)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read_header(stream)
            if dtype != np.dtype(object) or shape != ():
                raise ValueError("expected one dict in it, found an array of numbers")
            data = data[stream.tell() :]
        content = real_value(read_pickle(data))
        if not isinstance(content, dict):
            raise ValueError("expected a dict in it")
        return {str(key): real_value(value) for key, value in content.items() if isinstance(key, (str, bytes))}
    except Exception as error:  # values of odd types fail in many ways as well
        raise ValueError(f"{path}: {error}") from error
