"""`psi4d parity`: our networks against the parity fixtures of the official ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.number_rule import NumberRule
from pipeline.parity_cases import CASES, PSI_CASES, Fixture, Found, forget_psi

EXACT, HALF, GRADIENT = 1e-4, 2e-3, 1e-3  # largest relative L2 error: float32, stored as float16, gradients


@dataclass
class Line:
    """What is said of an array or a fixture."""

    name: str
    verdict: str  # pass, fail, unknown (nothing of ours belongs to it), input (nothing to compare: made by no rule)
    error: float | None = None  # relative L2
    detail: str = ""

    def __str__(self) -> str:
        error = "-" if self.error is None else f"{self.error:.1e}"
        return f"{self.name:42}  {error:>7}  {self.verdict}{self.detail and ': '}{self.detail}"


def check(folder: Path, rule: NumberRule) -> Iterator[Line]:
    """Checks the fixtures of a folder one after the other, by name. Raises UserError when there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the one that holds the parity fixtures (*.npz).")
    paths = sorted(path for path in folder.iterdir() if path.suffix == ".npz")
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
        return [Line(name, "unknown", detail=f"there is no such fixture; known are {', '.join(sorted(CASES))}")]
    try:
        fixture = Fixture(path.parent, read_arrays(path))
        with torch.no_grad():
            found = CASES[name](rule, fixture)
    except (ValueError, RuntimeError) as error:  # unreadable, or with inputs that the networks refuse
        return [Line(name, "fail", detail=" ".join(str(error).split()))]
    names = sorted(found.keys() | fixture.arrays.keys())
    return [_compare(f"{name}.{key}", key in fixture.inputs, found.get(key), fixture.arrays.get(key)) for key in names]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file, nothing unpickled. Raises ValueError when it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except Exception as error:  # a damaged archive raises nearly anything: its own error, that of zlib, of the header's parser, of memory
        raise ValueError(f"the file cannot be read ({type(error).__name__}: {' '.join(str(error).split())})") from error


def _compare(name: str, is_input: bool, found: Found | None, stored: np.ndarray | None) -> Line:
    if is_input:
        return Line(name, "input")
    if found is None:
        return Line(name, "unknown", detail="nothing of ours belongs to this array")
    if stored is None:
        return Line(name, "fail", detail="missing in the file")
    if isinstance(found, str):
        return Line(name, "fail", detail=found)
    if stored.dtype.kind not in "fiu" or stored.shape != tuple(found.shape):
        return Line(name, "fail", detail=f"stored as {stored.dtype} {stored.shape}, ours has the shape {tuple(found.shape)}")
    error = relative_error(np.asarray(found), stored)
    tolerance = GRADIENT if "grad" in name else HALF if stored.dtype == np.float16 else EXACT
    if error <= tolerance:  # not so when it is no number
        return Line(name, "pass", error)
    return Line(name, "fail", error, f"more than {tolerance:.0e}")


def relative_error(found: np.ndarray, stored: np.ndarray) -> float:
    """Relative L2 error in double precision."""
    a, b = found.astype(np.float64), stored.astype(np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), np.finfo(np.float64).tiny))
