"""Weights on disk: safetensors with a JSON beside it that says what they are; nothing is unpickled.

Networks are read here and written by `pipeline/networks/weights.py`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor


class WeightsError(ValueError):
    """Weights that are missing or damaged, in words for the user."""


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of `path`, on the CPU, and the content of its JSON.

    Raises WeightsError when one of the two files is missing or damaged or when they do not belong together.
    """
    # weights.safetensors has weights.json.
    path = Path(path)
    told = path.with_suffix(".json")
    for file in (path, told):
        if not file.is_file():
            make = "run the stage that makes them (dvc repro)"
            raise WeightsError(f"the weights {path} are not complete: {file.name} is missing; {make}")
    data = path.read_bytes()
    try:
        facts = json.loads(told.read_bytes())
        # The JSON is written first: it may belong to other tensors where a writer was killed.
        if facts["sha256"] != hashlib.sha256(data).hexdigest():
            other = f"their checksum is not the one in {told.name}"
            raise WeightsError(f"the weights {path} are damaged: {other}; make them again (dvc repro)")
        return safetensors.torch.load(data), facts
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise WeightsError(f"{told} is damaged; make the weights again (dvc repro)") from error
    except SafetensorError as error:
        raise WeightsError(f"{path} is no safetensors file: {error}") from error
