"""Tensors that are made when they are wanted: in fixed groups, once while there is room."""

import numpy as np
import pytest
import torch

from pipeline.pretrain import lazily
from pipeline.pretrain.lazily import Lazily


class Maker:
    """Makes the squares of rows, and remembers which it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        self.asked.append(rows.tolist())
        return {"square": torch.from_numpy(rows.astype(np.float32) ** 2)}


def test_a_row_is_made_with_its_group_whatever_is_wanted_with_it():
    make = Maker()
    squares = Lazily(make, count=10, together=4)
    found = squares(np.array([9, 1, 8]))["square"]
    assert found.tolist() == [81, 1, 64]
    assert make.asked == [[8, 9], [0, 1, 2, 3]]
    squares(np.array([0, 9]))
    assert len(make.asked) == 2


def test_what_was_not_wanted_for_longest_goes_when_there_is_no_room(monkeypatch):
    monkeypatch.setattr(lazily, "ROOM", 2 * 4)  # bytes: two rows
    make = Maker()
    squares = Lazily(make, count=10)
    for row in (0, 1, 0, 2):
        assert squares(np.array([row]))["square"].tolist() == [row**2]
    squares(np.array([0]))
    squares(np.array([1]))
    assert make.asked == [[0], [1], [2], [1]]
    # A batch may be larger than the room.
    assert squares(np.arange(5))["square"].tolist() == [0, 1, 4, 9, 16]


@pytest.mark.parametrize(
    ("row_bytes", "asked"),
    [(lazily.ROOM // 10, [[4, 5, 6, 7]]), (lazily.ROOM // 10 + 1, [[5], [7]])],
)
def test_rows_that_do_not_all_find_room_are_made_alone(row_bytes, asked):
    make = Maker()
    squares = Lazily(make, count=10, together=4, row_bytes=row_bytes)
    squares(np.array([5, 7]))
    assert make.asked == asked
