"""What is known of many faces, read or computed when it is first wanted, and kept while there is room."""

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

ROOM = 1 << 29  # bytes of what is kept


class Lazily:
    """Tensors of rows, made in fixed groups of rows that follow each other.

    A group is made as a whole, because the last bits of a matrix product depend on how many rows it has: what
    is made of a row must not depend on which rows are wanted with it. Threads may share it.
    """

    def __init__(
        self,
        make: Callable[[np.ndarray], dict[str, Tensor]],
        count: int,
        together: int = 1,
        row_bytes: int = 0,
    ) -> None:
        """`make` gives the tensors of some of `count` rows by name, each with an axis of these rows.

        A row takes about `row_bytes`.
        """
        self.make, self.count = make, count
        # Where not all rows find room, a group would be made whole again and again for one of its rows.
        self.together = together if count * row_bytes <= ROOM else 1
        self.groups: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self.lock = threading.Lock()

    def __call__(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The tensors of rows, in their order."""
        places = [divmod(int(row), self.together) for row in rows]
        with self.lock:
            needed = {group: self._group(group) for group, _ in places}
            self._make_room()
        first = needed[places[0][0]]
        stacked = {}
        for name in first:
            own = [needed[group][name][row] for group, row in places]
            stacked[name] = torch.stack(own)
        return stacked

    def _group(self, group: int) -> dict[str, Tensor]:
        if group not in self.groups:
            start = group * self.together
            stop = min(start + self.together, self.count)
            self.groups[group] = self.make(np.arange(start, stop))
        self.groups.move_to_end(group)
        return self.groups[group]

    def _make_room(self) -> None:
        """Forget those groups that were not wanted for longest."""
        newest = next(reversed(self.groups.values()))
        most = max(1, ROOM // sum(value.nbytes for value in newest.values()))
        while len(self.groups) > most:
            self.groups.popitem(last=False)
