"""Dataclasses of tensors as batches: put together from samples, and rows of them, by the names of fields."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

Sample = TypeVar("Sample")
Batch = TypeVar("Batch")


def collate(samples: Sequence[Sample]) -> Sample:
    """One of the kind of `samples`, in which every tensor has a new first axis along them."""
    columns: dict[str, Any] = {}
    for name in _names(samples[0]):
        columns[name] = torch.stack([getattr(sample, name) for sample in samples])
    return type(samples[0])(**columns)


def take(batch: Batch, rows: Any) -> Batch:
    """Some rows of every tensor of a batch, chosen as a tensor's are: a slice, indices or a mask."""
    columns = {name: getattr(batch, name)[rows] for name in _names(batch)}
    return type(batch)(**columns)


def _names(batch: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(batch)]
