"""Minima of values that are scattered to slots: nearest faces of points, nearest triangles of pixels."""

import torch
from torch import Tensor


def first_minimum(
    values_P: Tensor,
    slot_P: Tensor,
    slots: int,
) -> tuple[Tensor, Tensor]:
    """The least value in each slot, (slots,), and the index in P of the first that has it.

    An empty slot has inf and the index P. Scattering twice keeps the result the same whatever order the
    hardware works in, which a single scatter of indices would not.
    """
    count = len(values_P)
    least = values_P.new_full((slots,), torch.inf)
    least = least.scatter_reduce(0, slot_P, values_P, "amin")
    index_P = torch.arange(count, device=slot_P.device)
    # Only those that have the minimum take part in the second scatter.
    winner_P = torch.where(values_P == least[slot_P], index_P, count)
    first = winner_P.new_full((slots,), count)
    first = first.scatter_reduce(0, slot_P, winner_P, "amin")
    return least, first
