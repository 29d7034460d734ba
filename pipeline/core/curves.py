"""The curves of a training, as `dvc plots` draws them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.core.files import write_json


def write_curves(path: str | Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write rows of numbers as JSON; every row gets every key, with None where it has no number."""
    keys = dict.fromkeys(key for row in rows for key in row)
    empty = dict.fromkeys(keys)
    write_json(path, [empty | dict(row) for row in rows])
