"""`psi4d parity`: our networks against the parity fixtures of the official ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.core.errors import UserError
from pipeline.parity.cases import CASES
from pipeline.parity.file import Stored, read_fixture, relative_error
from pipeline.parity.fixture import Fixture, Found
from pipeline.parity.instrument_cases import INSTRUMENT_CASES
from pipeline.parity.numbers import NumberRule
from pipeline.parity.psi_cases import PSI_CASES, forget_psi

# The largest relative L2 errors: float32, stored as float16, gradients. Bytes count as float16: pictures that
# another version of OpenCV resizes differ in their last bits.
EXACT, HALF, GRADIENT = 1e-4, 2e-3, 1e-3
COARSE = (np.float16, np.uint8)


INSTRUMENTS = tuple(f"{name}." for name in INSTRUMENT_CASES)


@dataclass
class Line:
    """What is said of an array or a fixture."""

    name: str
    # pass, fail, unknown (nothing of ours belongs to it), input (made by no rule, so nothing to compare), or
    # skipped (a file of others is needed).
    verdict: str
    error: float | None = None  # relative L2
    detail: str = ""

    def __str__(self) -> str:
        error = "-" if self.error is None else f"{self.error:.1e}"
        return f"{self.name:42}  {error:>7}  {self.verdict}{self.detail and ': '}{self.detail}"


def check(folder: Path, rule: NumberRule) -> Iterator[Line]:
    """Checks the fixtures of a folder one after the other, by name. Raises UserError when there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the one that holds the parity fixtures (*.npz).")
    paths = [path for path in sorted(folder.iterdir()) if path.suffix == ".npz"]
    if not paths:
        raise UserError(f"there is no fixture (*.npz) in {folder}; give the folder that holds them.")
    try:
        for path in paths:
            if path.stem not in PSI_CASES:
                forget_psi()
            yield from check_fixture(path, rule)
    finally:
        forget_psi()


def check_fixture(path: Path, rule: NumberRule) -> list[Line]:
    """One line for each array of a fixture, or a single one that says why there is nothing to compare."""
    name = path.stem
    if name not in CASES:
        known = ", ".join(sorted(CASES))
        return [Line(name, "unknown", detail=f"there is no such fixture; known are {known}")]
    try:
        fixture = Fixture(path.parent, read_fixture(path))
        with torch.no_grad():
            found = CASES[name](rule, fixture)
    except (ValueError, RuntimeError) as error:
        # The file is unreadable, or has inputs that the networks refuse.
        return [Line(name, "fail", detail=" ".join(str(error).split()))]
    lines = []
    for key in sorted(found.keys() | fixture.arrays.keys()):
        is_input = key in fixture.inputs
        stored = fixture.arrays.get(key)
        lines.append(_compare(f"{name}.{key}", is_input, found.get(key), stored))
    return lines


def _compare(
    name: str,
    is_input: bool,
    found: Found | None,
    stored: Stored | None,
) -> Line:
    if is_input:
        return Line(name, "input")
    if found is None:
        return Line(name, "unknown", detail="nothing of ours belongs to this array")
    if stored is None:
        return Line(name, "fail", detail="missing in the file")
    if isinstance(found, str):
        return Line(name, "skipped", detail=found)
    dtype, shape = stored.values.dtype, tuple(found.shape)
    if dtype.kind not in "fiu" or stored.shape != shape:
        return Line(name, "fail", detail=f"stored as {dtype} {stored.shape}, ours has the shape {shape}")
    error = stored.error(np.asarray(found))
    if name.startswith(INSTRUMENTS):
        error = max(error, _pair_error(np.asarray(found), stored))
    if "grad" in name:
        tolerance = GRADIENT
    else:
        tolerance = HALF if dtype in COARSE else EXACT
    # An error that is no number passes no comparison.
    if error <= tolerance:
        return Line(name, "pass", error)
    return Line(name, "fail", error, f"more than {tolerance:.0e}")


def _pair_error(found: np.ndarray, stored: Stored) -> float:
    """The relative error of the difference of two items, where a whole array has two.

    A network that hardly looks at its input makes nearly the same of both, which no other comparison shows.
    """
    values = stored.values
    whole = stored.thinned_from is None and values.dtype not in COARSE
    # Two single numbers may be so near that their difference is rounding alone.
    if not whole or values.shape[:1] != (2,) or values.size <= 2:
        return 0.0
    ours = found[1].astype(np.float64) - found[0]
    theirs = values[1].astype(np.float64) - values[0]
    return relative_error(ours, theirs)
