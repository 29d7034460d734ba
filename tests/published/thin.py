"""`python -m tests.published.thin FULL [OUT]` makes the fixtures here from full ones."""

import sys
from pathlib import Path

from pipeline.parity.file import Stored, read_fixture, thinned, write_fixture
from pipeline.parity.instrument_cases import CROPS
from pipeline.parity.psi_cases import NECK_GRIDS
from tests.published import PARITY

INPUTS = {*NECK_GRIDS, CROPS}


def thin(path: Path) -> dict[str, Stored]:
    """A fixture with the values that are kept here. What is an input or was thinned before stays as it is."""
    # Thinning what was thinned would pick other places than those that the fixtures mean.
    arrays = read_fixture(path)
    for name, stored in arrays.items():
        if name not in INPUTS and stored.thinned_from is None:
            arrays[name] = thinned(stored.values)
    return arrays


def main(full: Path, out: Path = PARITY) -> None:
    """Writes a thinned fixture to `out` for each one in `full`."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(full.glob("*.npz")):
        write_fixture(out / path.name, thin(path))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
