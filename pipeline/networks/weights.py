"""Weights into safetensors, sealed by the JSON that says what they are; `model/weights.py` reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from pipeline.store.sealed import write_sealed


def save_weights(
    path: str | Path,
    state: Mapping[str, Tensor],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the tensors of `state` to `path` and `facts` to the JSON beside it.

    Tensors are of any shapes and dtypes; facts are sizes, params, hashes of inputs. The JSON also gets the
    SHA-256 and the numbers of tensors and of values; it is returned. Equal tensors and facts make equal
    bytes. Raises UserError when the place cannot be written, ValueError or TypeError when the facts are no
    JSON.
    """
    # Sorted, as the bytes of safetensors follow the order of the tensors.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())}
    counts = {
        "tensors": len(tensors),
        "values": sum(tensor.numel() for tensor in tensors.values()),
    }
    return write_sealed(path, safetensors.torch.save(tensors), {**facts, **counts})
