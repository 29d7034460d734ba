"""What TensorBoard is shown of the curves."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.board import Board
from pipeline.core.curves import write_curves
from pipeline.core.errors import UserError

ROWS = [{"step": 1, "images": 8, "l1": 0.5}, {"step": 2, "images": 16, "validation_l1": 0.25}]


def shown(events: Path, term: str) -> list[tuple[int, float]]:
    """Images and values of a term of the training `train`."""
    read = EventAccumulator(str(events / "train"))
    read.Reload()
    return [(point.step, point.value) for point in read.Scalars(term)]


def test_rows_of_a_running_training_are_added_once(tmp_path: Path) -> None:
    plots, events = tmp_path / "plots", tmp_path / "events"
    board = Board(plots, events)
    write_curves(plots / "train.json", ROWS)
    assert board.update() == 2
    more = {"step": 3, "images": 24, "l1": 0.125}
    write_curves(plots / "train.json", [*ROWS, more])
    assert board.update() == 1
    assert board.update() == 0
    assert shown(events, "l1") == [(8, 0.5), (24, 0.125)]
    assert shown(events, "validation_l1") == [(16, 0.25)]


def test_a_training_that_begins_anew_replaces_the_old_one(tmp_path: Path) -> None:
    plots, events = tmp_path / "plots", tmp_path / "events"
    board = Board(plots, events)
    write_curves(plots / "train.json", ROWS)
    board.update()
    write_curves(plots / "train.json", [ROWS[0] | {"l1": 0.75}])
    assert board.update() == 1
    assert shown(events, "l1") == [(8, 0.75)]


def test_without_a_curve_there_is_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no curve"):
        Board(tmp_path / "plots", tmp_path / "events").update()
