"""Adding up what microbatches make, in one order, whatever process makes which.

Floating-point sums depend on their order. Here it is that of a binary tree over the microbatches: 0 + 1,
2 + 3, then these two, and so on. A process has the microbatches below one node of the tree and adds them
itself; the sums of processes are added by the same rule (`distributed`). So one, two or four processes
give the same bits.
"""

from collections.abc import Sequence

from torch import Tensor

# A value for each parameter; None where a microbatch has no gradient.
Values = list[Tensor | None]


class TreeSum:
    """The sum of a power of two of leaves, which come one after the other.

    As soon as two sums of equally many leaves are there they are added. At most one of each size is
    kept, so that 8 leaves need memory for 3 and not for 8.
    """

    def __init__(self) -> None:
        self.kept: list[tuple[int, Values]] = []

    def add(self, leaf: Values) -> None:
        """The values of `leaf` are changed later."""
        size = 1
        while self.kept and self.kept[-1][0] == size:
            _, before = self.kept.pop()
            leaf = add_right(before, leaf)
            size *= 2
        self.kept.append((size, leaf))

    def total(self) -> Values:
        """The sum of all leaves, which have to be a power of two."""
        [(_, total)] = self.kept
        return total


def add_right(left: Values, right: Values) -> Values:
    """`left` + `right`, in the memory of one of them; None counts as zero, and None + None is None."""
    total: Values = []
    for mine, theirs in zip(left, right, strict=True):
        if mine is not None and theirs is not None:
            total.append(mine.add_(theirs))
            continue
        value = theirs if mine is None else mine
        # Zero is added even so: -0 + 0 is 0, and processes send zeros where they have nothing.
        total.append(value if value is None else value.add_(0.0))
    return total


def add_processes(parts: Sequence[Tensor]) -> Tensor:
    """The sum of what processes made, in the order of the tree; a power of two of equal shapes."""
    parts = list(parts)
    while len(parts) > 1:
        parts = [left + right for left, right in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]
