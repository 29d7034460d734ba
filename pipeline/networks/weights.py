"""Weights into safetensors, sealed by the JSON that says what they are, and back into networks for use."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from model.weights import WeightsError, load_weights
from pipeline.core.errors import UserError
from pipeline.store.sealed import sealing

# The names that types of tensors have in the file, in the library's order.
TYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
Network = TypeVar("Network", bound=torch.nn.Module)
Forms = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


def frozen(network: Network, path: Path, device: torch.device | str) -> Network:
    """`network` on `device` with the weights of `path`, for use alone.

    Raises UserError when they are missing, damaged, or of another network.
    """
    try:
        weights, _ = load_weights(path)
        network.load_state_dict(weights)
    except WeightsError as error:
        raise UserError(str(error)) from error
    except RuntimeError as error:
        differs = "are of other sizes than those in params.yaml, or of another version of psi4d"
        raise UserError(f"the weights {path} {differs}: make them again (dvc repro). {error}") from error
    return network.to(device).eval().requires_grad_(False)


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
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return save_in_pieces(path, forms_of(tensors), lambda name: [tensors[name]], facts)


def forms_of(tensors: Mapping[str, Tensor]) -> Forms:
    """The shape and the type of each."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def save_in_pieces(
    path: str | Path,
    forms: Forms,
    pieces: Callable[[str], Iterable[Tensor]],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the same bytes as `save_weights`, of tensors that need not be in memory as a whole.

    `forms` has the shape and the type (one of TYPES) of each, `pieces` its rows in their order, by its name.
    """
    counts = {
        "tensors": len(forms),
        "values": sum(math.prod(shape) for shape, _ in forms.values()),
    }
    return write_tensors(path, forms, pieces, {**facts, **counts})


def write_tensors(
    path: str | Path,
    forms: Forms,
    pieces: Callable[[str], Iterable[Tensor]],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The same with nothing but `facts` in the JSON; the names of tensors need no order.

    The library's `save` makes the whole file in memory first: 4 GB of a checkpoint of the published sizes.
    """
    # The widest types first, so that every tensor is aligned; then by name.
    types = list(TYPES)
    order = sorted(forms, key=lambda name: (types.index(forms[name][1]), name))
    header, end = {}, 0
    for name in order:
        shape, dtype = forms[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": TYPES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with sealing(path) as draft:
        draft.facts |= facts
        draft.file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for piece in pieces(name):
                draft.file.write(_bytes(piece))
    return draft.facts


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy where it is contiguous."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def mapped_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file as arrays that are read where they are looked at, and cannot be written.

    Their checksum is not looked at: `check_sealed` reads the whole file for it.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name, told in header.items():
        dtype = {"F32": np.float32, "U8": np.uint8}[told["dtype"]]
        start, stop = (8 + length + offset for offset in told["data_offsets"])
        # Nothing can be mapped of a tensor without values.
        if start == stop:
            found[name] = np.zeros(told["shape"], dtype)
        else:
            found[name] = np.memmap(path, dtype, "r", start, tuple(told["shape"]))
    return found
