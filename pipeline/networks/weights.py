"""Weights into safetensors, sealed by the JSON that says what they are, and back into networks for use."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from model.weights import WeightsError, load_weights
from pipeline.core.errors import UserError
from pipeline.store.sealed import sealing, write_sealed

# The types of tensors that are too large for memory, by their names in the file.
TYPES = {"F32": torch.float32, "U8": torch.uint8}
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
    # Sorted, as the bytes of safetensors follow the order of the tensors.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())}
    counts = {
        "tensors": len(tensors),
        "values": sum(tensor.numel() for tensor in tensors.values()),
    }
    return write_sealed(path, safetensors.torch.save(tensors), {**facts, **counts})


def save_in_pieces(
    path: str | Path,
    forms: Forms,
    pieces: Callable[[str], Iterable[Tensor]],
    facts: Mapping[str, Any],
) -> None:
    """Write the same bytes as `save_weights`, of tensors that are never in memory as a whole.

    `forms` has the shape and the type (one of TYPES) of each, `pieces` its rows in their order, by its name.
    """
    names = {dtype: name for name, dtype in TYPES.items()}
    # The library's order: the widest types first, then by name. So every tensor is aligned.
    order = sorted(forms, key=lambda name: (-forms[name][1].itemsize, name))
    header, end, values = {}, 0, 0
    for name in order:
        shape, dtype = forms[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": [start, end]}
        values += math.prod(shape)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with sealing(path) as draft:
        draft.facts |= {**facts, "tensors": len(forms), "values": values}
        draft.file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for piece in pieces(name):
                draft.file.write(piece.contiguous().numpy().tobytes())


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
