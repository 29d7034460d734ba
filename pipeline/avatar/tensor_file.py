"""Tensors in one file: safetensors, with a JSON in the header that says what they are, and a checksum."""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.core.files import write_bytes

HEADER = "psi4d"  # the key of the JSON in the header


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors (on the CPU, contiguous) and facts. Equal ones make equal bytes.

    Raises UserError when the place cannot be written.
    """
    about = {**facts, "checksum": _checksum(tensors)}
    # One key: safetensors keeps several in an order that changes from run to run.
    header = {HEADER: json.dumps(about, sort_keys=True)}
    write_bytes(path, safetensors.torch.save(dict(tensors), header))


def read_header(path: Path) -> dict[str, Any]:
    """The facts alone, whatever the size of the tensors. Raises ValueError for a file of another kind."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {})[HEADER])
    except (OSError, SafetensorError, KeyError, ValueError, struct.error) as error:
        raise ValueError(f"no header that can be read ({error})") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts. Raises ValueError when the file is damaged or of another kind."""
    facts = read_header(path)
    try:
        tensors = safetensors.torch.load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ValueError(str(error)) from error
    if facts.get("checksum") != _checksum(tensors):
        raise ValueError("its checksum is another")
    return tensors, facts


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
