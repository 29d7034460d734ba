"""Weights on disk: safetensors with a JSON beside it that says what they are; nothing is unpickled."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor


class WeightsError(ValueError):
    """Weights that are missing or damaged, in words for the user."""


def save_weights(
    path: str | Path,
    state: Mapping[str, Tensor],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the tensors of `state` to `path` and `facts` to the JSON beside it.

    Tensors are of any shapes and dtypes; facts are sizes, params, hashes of inputs.
    Equal tensors and facts make equal bytes. Each file appears complete or not at all. The JSON also gets
    the SHA-256 and the numbers of tensors and of values; it is returned. Raises ValueError when the facts
    are no JSON, OSError when the place cannot be written.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())}
    data = safetensors.torch.save(tensors)
    measured = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "tensors": len(tensors),
        "values": sum(tensor.numel() for tensor in tensors.values()),
    }
    content = {**facts, **measured}
    try:
        text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
    except TypeError as error:
        raise ValueError(f"the facts about the weights {path.name} do not fit into JSON: {error}") from error
    # The JSON comes first: where only it is there, the checksum says that the tensors do not belong to it.
    _write(facts_path(path), text.encode())
    _write(path, data)
    return content


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of `path`, on the CPU, and the content of its JSON.

    Raises WeightsError when one of the two files is missing or damaged or when they do not belong together.
    """
    path = Path(path)
    for file in (path, facts_path(path)):
        if not file.is_file():
            make = "run the stage that makes them (dvc repro)"
            raise WeightsError(f"the weights {path} are not complete: {file.name} is missing; {make}")
    data = path.read_bytes()
    try:
        facts = json.loads(facts_path(path).read_bytes())
        if facts["sha256"] != hashlib.sha256(data).hexdigest():
            other = f"their checksum is not the one in {facts_path(path).name}"
            raise WeightsError(f"the weights {path} are damaged: {other}; make them again (dvc repro)")
        return safetensors.torch.load(data), facts
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise WeightsError(f"{facts_path(path)} is damaged; make the weights again (dvc repro)") from error
    except SafetensorError as error:
        raise WeightsError(f"{path} is no safetensors file: {error}") from error


def facts_path(path: str | Path) -> Path:
    """Where the JSON of the weights `path` lies: weights.safetensors has weights.json."""
    return Path(path).with_suffix(".json")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
