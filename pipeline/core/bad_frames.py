"""Frames that a person has marked as bad: they are neither trained on nor measured.

The page of `psi4d inspect --html` saves a table of them, a CSV with the column `key`. All tables in one
folder count together.
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes

KEY = "key"


def find_bad_frames(folder: Path) -> list[str]:
    """The keys in all tables of `folder`, sorted; none where there is no such folder.

    Raises UserError that names the file when one is no table with a column `key`.
    """
    keys: set[str] = set()
    for path in sorted(folder.glob("*.csv")):
        keys.update(_keys(path))
    return sorted(keys)


def write_bad_frames(path: Path, keys: Iterable[str]) -> Path:
    """Write `keys` as one table, a key a line. Raises UserError when the place cannot be written."""
    lines = [KEY, *keys, ""]
    return write_bytes(path, "\n".join(lines).encode())


def read_bad_frames(path: Path) -> frozenset[str]:
    """The keys of one table; none where there is no such file. Raises UserError as `find_bad_frames`."""
    return frozenset(_keys(path)) if path.exists() else frozenset()


def _keys(path: Path) -> Iterator[str]:
    try:
        # Spreadsheets begin a table with the mark of its byte order.
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
            names = [name for row in rows[:1] for name in row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table of bad frames: {error}") from error
    if rows and KEY not in names:
        raise UserError(
            f"{path} has no column `{KEY}`. The page of `psi4d inspect --html` saves one; a text file "
            f"with a key in each line, below the word {KEY}, does as well."
        )
    for row in rows:
        key = (row[KEY] or "").strip()
        if key:
            yield key
