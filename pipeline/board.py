"""The curves of the trainings in TensorBoard, also while they run: `psi4d tensorboard`.

A stage writes its curves for `dvc plots` (`core.curves`), and knows nothing of this. They are read again
every few seconds, and what is new goes into event files.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError

EVERY = 5.0  # seconds
# What a row is about rather than what was measured.
PLACE = {"step", "images"}


class Board:
    """Keeps event files in `events`/<name>/ that say what the curves `plots`/<name>.json say."""

    def __init__(self, plots: Path, events: Path) -> None:
        self.plots, self.events = plots, events
        self.writers: dict[str, Any] = {}
        self.shown: dict[str, list[dict[str, float]]] = {}
        # Those of an earlier call would be shown twice.
        shutil.rmtree(events, ignore_errors=True)

    def update(self) -> int:
        """Take in what is new; returns the number of new rows.

        A training that began anew replaces the old one. Raises UserError when the package is missing, or
        there is no curve.
        """
        if not any(self.plots.glob("*.json")):
            raise UserError(f"there is no curve in {self.plots} yet; `dvc repro` trains.")
        new = 0
        for path in sorted(self.plots.glob("*.json")):
            rows = [_numbers(row) for row in json.loads(path.read_text())]
            shown = self.shown.get(path.stem, [])
            if rows[: len(shown)] != shown:
                self._forget(path.stem)
                shown = []
            self._add(path.stem, rows[len(shown) :])
            self.shown[path.stem] = rows
            new += len(rows) - len(shown)
        return new

    def _add(self, name: str, rows: list[dict[str, float]]) -> None:
        if name not in self.writers:
            self.writers[name] = _summary_writer()(self.events / name)
        writer = self.writers[name]
        for row in rows:
            images = int(row["images"])
            for term in row.keys() - PLACE:
                writer.add_scalar(term, row[term], images)
        writer.flush()

    def _forget(self, name: str) -> None:
        self.writers.pop(name).close()
        shutil.rmtree(self.events / name)


def serve(events: Path, port: int) -> str:
    """Start TensorBoard on `events`, in a thread; returns the address of its page."""
    from tensorboard.program import TensorBoard

    board = TensorBoard()
    board.configure(logdir=str(events), port=port)
    return board.launch()


def follow(board: Board) -> None:
    """Keep the event files as new as the curves, until the process ends."""
    while True:
        board.update()
        time.sleep(EVERY)


def _numbers(row: dict[str, float | None]) -> dict[str, float]:
    """What a row has; every row of a curve has all names, and None where it has no number."""
    return {name: value for name, value in row.items() if value is not None}


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("psi4d tensorboard needs a package: pip install 'psi4d[tensorboard]'") from error
    return SummaryWriter
