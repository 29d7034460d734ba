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
        # The Schur complement of the frames: A - B D^-1 B^T, summed over the frames of a person.
        self.person = person
        self.frames = torch.linalg.cholesky(frames_Fxx)
        self.solved = torch.cholesky_solve(mixed_Fsx.mT, self.frames)  # (F, x, s)
        products = mixed_Fsx @ self.solved
        explained = add_up(products, person, len(shapes_Gss))
        self.shapes = torch.linalg.cholesky(shapes_Gss - explained)

    def __call__(self, shape: Tensor, frame: Tensor) -> Unknowns:
        """The solution for this right-hand side."""
        # What the frames explain is taken from the shapes' equations, then the shapes from the frames' ones.
        by_frame = apply(self.solved.mT, frame)
        explained = add_up(by_frame, self.person, len(shape))
        shape = _solve(self.shapes, shape - explained)
        alone = _solve(self.frames, frame)
        by_shape = apply(self.solved, shape[self.person])
        return shape, alone - by_shape


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    """Solutions (..., n) of systems given by their Cholesky factors (..., n, n)."""
    column = right[..., None]
    return torch.cholesky_solve(column, factor)[..., 0]


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

    def along(
        x: Unknowns,
        factor: Tensor,
        direction: Unknowns,
    ) -> Unknowns:
        of_frame = factor[person, None]
        shape = x[0] + factor[:, None] * direction[0]
        frame = x[1] + of_frame * direction[1]
        return shape, frame

    def dot(a: Unknowns, b: Unknowns) -> Tensor:
        shapes = (a[0] * b[0]).sum(1)
        frames = (a[1] * b[1]).sum(1)
        return shapes.index_add(0, person, frames)

    # The preconditioned method of conjugate gradients (Hestenes and Stiefel), with a length for each person.
    x = start
    persons = len(right[0])
    minus_one = -torch.ones(persons, dtype=torch.float64)
    rest = along(right, minus_one, times(*x))
    direction = precondition(*rest)
    power = dot(rest, direction)
    for _ in range(CONJUGATE_STEPS):
        turned = times(*direction)
        curvature = dot(direction, turned)
        length = power / curvature.clamp(min=TINY)
        x = along(x, length, direction)
        rest = along(rest, -length, turned)
        conditioned = precondition(*rest)
        fresh = dot(rest, conditioned)
        kept = fresh / power.clamp(min=TINY)
        direction = along(conditioned, kept, direction)
        power = fresh
    return x


def add_up(values_F: Tensor, person: Tensor, count: int) -> Tensor:
    """The sums over the frames of each of `count` persons."""
    sums = values_F.new_zeros(count, *values_F.shape[1:])
    return sums.index_add_(0, person, values_F)


def apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Products of matrices (..., m, n) and vectors (..., n)."""
    column = vector[..., None]
    return (matrix @ column)[..., 0]
