"""The files of the parity fixtures: an npz archive of whole arrays, or of thinned ones.

A thinned array `a` of shape S is stored as two: `a`, some of its values in one row, and `a.shape`, S. Which
values these are follows from the size of the array and from their number alone (`kept_places`).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

KEPT = 4096  # values of a thinned array; an array with no more than these stays whole
SHAPE = ".shape"  # behind the name of a thinned array


@dataclass(frozen=True)
class Stored:
    """An array as a fixture has it."""

    values: np.ndarray
    thinned_from: tuple[int, ...] | None = None  # the shape of the array that had these values and more

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole array."""
        return self.values.shape if self.thinned_from is None else self.thinned_from

    def error(self, found: np.ndarray) -> float:
        """The relative L2 error of an array of the same shape over the stored values, in double precision."""
        # Values at the same places, so that the two errors are of the same numbers.
        if self.thinned_from is not None:
            places = kept_places(found.size, len(self.values))
            found = found.ravel()[places]
        return relative_error(found, self.values)


def kept_places(size: int, count: int) -> np.ndarray:
    """Where the `count` kept values of a thinned array lie in its `size` values in C order.

    (count,) int64, rising. One place is drawn in each of `count` stretches of equal length, so that no
    channel and no row of a picture is left out, and so that the places keep no step with the rows. NumPy
    promises that the raw numbers of PCG64 never change.
    """
    steps = np.arange(count + 1, dtype=np.int64)
    bounds = steps * size // count
    lengths = np.diff(bounds).astype(np.uint64)
    raw = np.random.PCG64(0).random_raw(count)
    drawn = raw % lengths
    return bounds[:-1] + drawn.astype(np.int64)


def thinned(array: np.ndarray, count: int = KEPT) -> Stored:
    """`count` values of an array, or all of it if it has no more."""
    if array.size <= count:
        return Stored(array)
    places = kept_places(array.size, count)
    return Stored(array.ravel()[places], array.shape)


def write_fixture(path: Path, arrays: dict[str, Stored]) -> None:
    """Writes a fixture; the same arrays make the same bytes."""
    entries = {}
    for name, stored in arrays.items():
        entries[name] = stored.values
        if stored.thinned_from is not None:
            shape = np.array(stored.thinned_from, np.int64)
            entries[name + SHAPE] = shape
    np.savez_compressed(path, **entries)


def read_fixture(path: Path) -> dict[str, Stored]:
    """The arrays of a fixture, nothing unpickled. Raises ValueError when it cannot be read."""
    try:
        # NumPy would leave the file of a damaged archive open.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            entries = {name: file[name] for name in file.files}
    except Exception as error:
        # A damaged archive raises nearly anything: its own error, that of zlib, of the header's parser, of
        # memory.
        reason = " ".join(str(error).split())
        raise ValueError(f"the file cannot be read ({type(error).__name__}: {reason})") from error
    arrays = {}
    for name, values in entries.items():
        if not name.endswith(SHAPE):
            arrays[name] = Stored(values)
    for entry, shape in entries.items():
        if not entry.endswith(SHAPE):
            continue
        name = entry.removesuffix(SHAPE)
        if name not in arrays:
            raise ValueError(f"{entry} is there, but the array {name} is missing")
        values = entries[name]
        whole = _checked(name, values, shape)
        arrays[name] = Stored(values, whole)
    return arrays


def _checked(
    name: str,
    values: np.ndarray,
    shape: np.ndarray,
) -> tuple[int, ...]:
    """The shape of a thinned array, which must have some values here, but not more than all."""
    counts = shape.dtype.kind in "iu" and shape.ndim == 1
    if not counts or (shape < 0).any():
        raise ValueError(f"{name}{SHAPE} is no shape")
    whole = tuple(shape.tolist())
    size = math.prod(whole)
    if values.ndim != 1 or not 0 < len(values) <= size:
        raise ValueError(f"{name} does not hold values of an array of shape {whole}")
    return whole


def relative_error(found: np.ndarray, stored: np.ndarray) -> float:
    """Relative L2 error in double precision."""
    ours = found.astype(np.float64)
    theirs = stored.astype(np.float64)
    # An array of zeros has the error 0 when ours is zero too, and a huge one when it is not.
    length = max(np.linalg.norm(theirs), np.finfo(np.float64).tiny)
    difference = np.linalg.norm(ours - theirs)
    return float(difference / length)
