"""Numbers in foreign pickles: numpy arrays, chumpy arrays and scipy's sparse matrices.

They are decoded from their bytes after a check of their shapes.
"""

import io
import math
from pathlib import Path

import numpy as np

from model.foreign.other_files import HEAD, mangled_line_ends, other_kind, with_own_line_ends
from model.foreign.safe_pickle import Bytes, Record, read_part

LARGEST_FILE = 1 << 30  # bytes; the head model has about 50 MB
MOST_DENSE = 10_000_000  # numbers of a sparse matrix when it is written out
RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
FROM_BUFFER = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")  # pickle protocol 5
CODES = ("b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")  # types without objects


def real_value(value: object) -> object:
    """A numpy array for the Record of an array, of a chumpy array or of a scipy sparse matrix.

    Anything else is returned as it is. For an object array without dimensions, the one object in it.
    """
    if not isinstance(value, Record):
        return value
    if value.origin in RECONSTRUCT:
        if not isinstance(value.state, tuple) or len(value.state) != 5:
            raise ValueError("a numpy array is incomplete")
        _, shape, dtype, fortran, data = value.state
        return _array(shape, dtype, "F" if fortran else "C", data)
    if value.origin in FROM_BUFFER:
        if len(value.arguments) != 4:
            raise ValueError("a numpy array is incomplete")
        data, dtype, shape, order = value.arguments
        return _array(shape, dtype, order, data)
    if value.origin in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"):
        if len(value.arguments) != 2:
            raise ValueError("a numpy number is incomplete")
        dtype, data = value.arguments
        return _array((), dtype, "C", data)
    # A chumpy array is a graph of operations; FLAME's are leaves, whose numbers are their x.
    if value.origin.startswith("chumpy.") and "x" in value.attributes():
        return real_value(value.attributes()["x"])
    if value.origin.startswith("scipy.sparse"):
        return _dense(value)
    return value


def _is_shape(value: object) -> bool:
    if not isinstance(value, tuple) or len(value) > 16:
        return False
    return all(isinstance(n, int) and 0 <= n < 1 << 40 for n in value)


def _array(
    shape: object,
    dtype: object,
    order: object,
    data: object,
) -> object:
    if not _is_shape(shape):
        raise ValueError("a numpy array has no proper shape")
    if not isinstance(dtype, Record) or dtype.origin != "numpy.dtype":
        raise ValueError("a numpy array has no proper type")
    code = dtype.arguments[0] if dtype.arguments else None
    if not isinstance(code, str):
        raise ValueError("a numpy array has no proper type")
    # An array of one object is how numpy saves a dict.
    if code.startswith("O"):
        single = isinstance(data, list) and len(data) == 1
        if shape != () or not single:
            raise ValueError("an array of objects is not accepted")
        return real_value(data[0])
    if code not in CODES:
        raise ValueError(f"a numpy array of type {code!r:.20} is not accepted")
    big = isinstance(dtype.state, tuple) and dtype.state[1:2] == (">",)
    kind = np.dtype((">" if big else "<") + code)
    # Python 2 wrote bytes as text.
    if isinstance(data, str):
        data = data.encode("latin1")
    size = math.prod(shape) * kind.itemsize
    complete = isinstance(data, Bytes) and len(data) == size
    if not complete or order not in ("C", "F"):
        raise ValueError(f"a numpy array of shape {shape} does not hold that many numbers")
    return np.frombuffer(data, kind).reshape(shape, order=order)


def _dense(matrix: Record) -> np.ndarray:
    """A matrix in compressed rows or columns, float64, written out.

    Along its major axis `indptr` says where each row's or column's numbers begin and end.
    """
    kind = matrix.origin.rsplit(".", 1)[1][:3]
    state = matrix.attributes()
    shape = state.get("_shape", state.get("shape"))
    flat = _is_shape(shape) and len(shape) == 2
    small = flat and math.prod(shape) <= MOST_DENSE
    if kind not in ("csc", "csr") or not small:
        raise ValueError(f"a sparse matrix {matrix.origin!r:.60} of such a shape is not accepted")
    major, minor = shape if kind == "csr" else shape[::-1]
    data = _row(state.get("data"))
    indices = _row(state.get("indices"))
    starts = _row(state.get("indptr"))
    count = len(data)
    steps = np.diff(starts.astype(np.int64))
    if len(starts) != major + 1 or (steps < 0).any():
        raise ValueError("the arrays of a sparse matrix do not fit together")
    if steps.sum() != count or len(indices) != count:
        raise ValueError("the arrays of a sparse matrix do not fit together")
    # An index outside would write into the next row, or beyond the matrix.
    if count and not 0 <= indices.min() <= indices.max() < minor:
        raise ValueError("a sparse matrix has an index outside of its shape")
    # As scipy does, entries that stand twice are added up.
    dense = np.zeros((major, minor))
    places = np.repeat(np.arange(major), steps)
    np.add.at(dense, (places, indices), data)
    return dense if kind == "csr" else dense.T


def _row(value: object) -> np.ndarray:
    array = real_value(value)
    if not isinstance(array, np.ndarray) or array.ndim != 1:
        raise ValueError("a sparse matrix lacks its arrays")
    return array


def read_bytes(path: Path) -> bytes:
    """The file's bytes. Raises ValueError when it is missing or larger than a head model can be."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"{path}: larger than {LARGEST_FILE} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def read_mapping(path: Path) -> dict[str, object]:
    """A dict that was pickled (.pkl) or saved as a numpy object array (.npy), its values decoded.

    Raises ValueError naming the file.
    """
    data = read_bytes(path)
    try:
        start = _pickle_in_npy(data) if path.suffix == ".npy" else 0
        data = with_own_line_ends(data)
        found, _ = read_part(data, start)
        content = real_value(found)
        if not isinstance(content, dict):
            raise ValueError("expected a dict in it")
        named = {key: value for key, value in content.items() if isinstance(key, str)}
        return {key: real_value(value) for key, value in named.items()}
    except Exception as error:
        # Values of odd types fail in many ways as well.
        told = other_kind(data[:HEAD]) or mangled_line_ends(data)
        raise ValueError(f"{path}: {told or error}") from error


def _pickle_in_npy(data: bytes) -> int:
    """Where the pickle begins in a saved object array without dimensions."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        read_header = np.lib.format.read_array_header_1_0
    else:
        read_header = np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if dtype != np.dtype(object) or shape != ():
        raise ValueError("expected one dict in it, found an array of numbers")
    return stream.tell()
