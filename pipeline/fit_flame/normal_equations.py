"""Solving the normal equations of many persons at once.

A person has one shape, and frames that know only their neighbours. A vector of unknowns is a pair: shapes
(G, s) of G persons and frames (F, x). `person` (F,) says whose frame each is.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Unknowns = tuple[Tensor, Tensor]
CONJUGATE_STEPS = 6
TINY = 1e-300  # keeps a person who is solved already from dividing by nothing


class Elimination:
    """Solves the equations without the bonds in time.

    Then a frame knows its person's shape alone: frames are eliminated (a Schur complement), and what is left
    is one small system for each person.
    """

    def __init__(
        self,
        shapes_Gss: Tensor,
        frames_Fxx: Tensor,
        mixed_Fsx: Tensor,
        person: Tensor,
    ) -> None:
        self.person = person
        self.frames = torch.linalg.cholesky(frames_Fxx)
        self.solved = torch.cholesky_solve(mixed_Fsx.mT, self.frames)  # (F, x, s)
        explained = add_up(mixed_Fsx @ self.solved, person, len(shapes_Gss))
        self.shapes = torch.linalg.cholesky(shapes_Gss - explained)

    def __call__(self, shape: Tensor, frame: Tensor) -> Unknowns:
        """The solution for this right-hand side."""
        # What the frames explain is taken from the shapes' equations, then the shapes from the frames' ones.
        explained = add_up(apply(self.solved.mT, frame), self.person, len(shape))
        reduced = shape - explained
        shape = torch.cholesky_solve(reduced[..., None], self.shapes)[..., 0]
        alone = torch.cholesky_solve(frame[..., None], self.frames)[..., 0]
        return shape, alone - apply(self.solved, shape[self.person])


def conjugate_gradients(
    times: Callable[[Tensor, Tensor], Unknowns],
    precondition: Callable[[Tensor, Tensor], Unknowns],
    right: Unknowns,
    start: Unknowns,
    person: Tensor,
) -> Unknowns:
    """Solve for all persons at once, each with its own step lengths.

    `times` multiplies by the whole matrix; `precondition` solves it without the bonds between neighbouring
    frames, which are left to iteration.
    """

    def along(x: Unknowns, factor: Tensor, direction: Unknowns) -> Unknowns:
        shape = x[0] + factor[:, None] * direction[0]
        frame = x[1] + factor[person, None] * direction[1]
        return shape, frame

    def dot(a: Unknowns, b: Unknowns) -> Tensor:
        shapes = (a[0] * b[0]).sum(1)
        frames = (a[1] * b[1]).sum(1)
        return shapes.index_add(0, person, frames)

    # The preconditioned method of conjugate gradients (Hestenes and Stiefel), with a length for each person.
    x = start
    minus_one = -torch.ones(len(right[0]), dtype=torch.float64)
    rest = along(right, minus_one, times(*x))
    direction = precondition(*rest)
    power = dot(rest, direction)
    for _ in range(CONJUGATE_STEPS):
        turned = times(*direction)
        length = power / dot(direction, turned).clamp(min=TINY)
        x = along(x, length, direction)
        rest = along(rest, -length, turned)
        conditioned = precondition(*rest)
        fresh = dot(rest, conditioned)
        direction = along(conditioned, fresh / power.clamp(min=TINY), direction)
        power = fresh
    return x


def add_up(values_F: Tensor, person: Tensor, count: int) -> Tensor:
    """The sums over the frames of each of `count` persons."""
    return values_F.new_zeros(count, *values_F.shape[1:]).index_add_(0, person, values_F)


def apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Products of matrices (..., m, n) and vectors (..., n)."""
    return (matrix @ vector[..., None])[..., 0]
