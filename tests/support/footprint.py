"""The memory of a computation on a GPU, by calculation.

The computation runs on tensors without numbers, and the bytes of those that are alive are counted.
Tensors on the device `meta` take the code path of a GPU. The memory that libraries use within a kernel is not
seen, nor are the holes between tensors, nor what CUDA takes for itself.
"""

import weakref
from collections.abc import Iterable
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GRAIN = 512  # bytes, to which CUDA's allocator rounds up


class Footprint(TorchDispatchMode):
    """Within it, `bytes` is what living tensors without numbers take, `peak` the most that they ever took."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.known: set[int] = set()
        self.attention = patch.object(F, "scaled_dot_product_attention", _fused_attention)

    def __enter__(self) -> "Footprint":
        self.attention.__enter__()
        return super().__enter__()

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self.attention.__exit__(*exception)

    def __torch_dispatch__(
        self, operation: Any, _types: Any, arguments: tuple = (), named: dict[str, Any] | None = None
    ) -> Any:
        # Tensors of the CPU are constants and the inputs of kernels that are not imitated.
        result = operation(*arguments, **(named or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == "meta":
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        # Views share a storage, which counts once; it is free when the last of them is.
        if storage._cdata not in self.known:
            size = -(-storage.nbytes() // GRAIN) * GRAIN
            self.known.add(storage._cdata)
            weakref.finalize(storage, self._free, storage._cdata, size)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size


def _fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """By the kernel that PyTorch has for float32 on a GPU.

    For tensors without numbers it would choose the one that keeps the matrix.
    """
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True)[0]


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
