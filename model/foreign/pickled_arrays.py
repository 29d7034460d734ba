"""Numbers in foreign pickles: numpy arrays, chumpy arrays and scipy's sparse matrices, decoded from their bytes after a check of their shapes."""

import io
import math
from pathlib import Path

import numpy as np

from model.foreign.safe_pickle import Bytes, Record, read_part

LARGEST_FILE = 1 << 30  # bytes; the head model has about 50 MB


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
    if value.origin in (
        "numpy.core.numeric._frombuffer",
        "numpy._core.numeric._frombuffer",
    ):  # pickle protocol 5
        if len(value.arguments) != 4:
            raise ValueError("a numpy array is incomplete")
        data, dtype, shape, order = value.arguments
        return _array(shape, dtype, order, data)
    if value.origin in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"):
        if len(value.arguments) != 2:
            raise ValueError("a numpy number is incomplete")
        return _array((), value.arguments[0], "C", value.arguments[1])
    if value.origin.startswith("chumpy.") and "x" in value.attributes():
        return real_value(value.attributes()["x"])
    if value.origin.startswith("scipy.sparse"):
        return _dense(value)
    return value


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= 16
        and all(isinstance(n, int) and 0 <= n < 1 << 40 for n in value)
    )


def _array(shape: object, dtype: object, order: object, data: object) -> object:
    if not _is_shape(shape):
        raise ValueError("a numpy array has no proper shape")
    if (
        not isinstance(dtype, Record)
        or dtype.origin != "numpy.dtype"
        or not dtype.arguments
        or not isinstance(dtype.arguments[0], str)
    ):
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
    if (
        not isinstance(data, Bytes)
        or order not in ("C", "F")
        or len(data) != math.prod(shape) * kind.itemsize
    ):
        raise ValueError(f"a numpy array of shape {shape} does not hold that many numbers")
    return np.frombuffer(data, kind).reshape(shape, order=order)


def _dense(matrix: Record) -> np.ndarray:
    kind, state = matrix.origin.rsplit(".", 1)[1][:3], matrix.attributes()
    shape = state.get("_shape", state.get("shape"))
    if kind not in ("csc", "csr") or not _is_shape(shape) or len(shape) != 2 or math.prod(shape) > 10_000_000:
        raise ValueError(f"a sparse matrix {matrix.origin!r:.60} of such a shape is not accepted")
    major, minor = shape if kind == "csr" else shape[::-1]
    data, indices, starts = (real_value(state.get(key)) for key in ("data", "indices", "indptr"))
    if not all(isinstance(a, np.ndarray) and a.ndim == 1 for a in (data, indices, starts)):
        raise ValueError("a sparse matrix lacks its arrays")
    steps = np.diff(starts.astype(np.int64))  # pyrefly: ignore[missing-attribute]
    if len(starts) != major + 1 or (steps < 0).any() or steps.sum() != len(data) or len(indices) != len(data):
        raise ValueError("the arrays of a sparse matrix do not fit together")
    if len(indices) and not 0 <= indices.min() <= indices.max() < minor:  # pyrefly: ignore[missing-attribute]
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
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
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
