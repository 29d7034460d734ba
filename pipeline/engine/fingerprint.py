"""What a result depends on, as one short word: the code that makes it, its parameters and its input files."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from pipeline.core.errors import UserError
from pipeline.core.files import sha256
from pipeline.engine.code_mark import code_mark, module_name
from pipeline.store.shards import sidecar_path


def fingerprint(code: str, *inputs: Any) -> str:
    """16 hexadecimal digits that depend on every input, on the module `code` (a `__file__`) and on torch.

    The module counts with all code of ours that it imports (pipeline/engine/code_mark.py), torch with its
    version. A Path counts with what is in it: a folder with all its files, where a shard is taken by its
    sidecar, which holds its checksum. A dataclass or a pydantic model counts with its values, everything else
    as JSON. Raises UserError for a path that is not there.
    """
    # Another version of torch may round differently; two runs must not mix within a folder.
    parts = [torch.__version__, code_mark(module_name(code)), *map(_summary, inputs)]
    return _short(parts)


def code_fingerprint(code: str) -> str:
    """The same of the code and of torch alone."""
    return fingerprint(code)


def inputs_fingerprint(*inputs: Any) -> str:
    """The same of the inputs alone, whatever the code."""
    return _short([_summary(value) for value in inputs])


def _short(parts: list) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _summary(value: Any) -> Any:
    if isinstance(value, Path):
        if value.is_file():
            return sha256(value)
        if not value.is_dir():
            raise UserError(f"{value} is missing. Run the stage that makes it: dvc repro.")
        files = sorted(path for path in value.rglob("*") if path.is_file() and not _has_sidecar(path))
        return [(path.relative_to(value).as_posix(), sha256(path)) for path in files]
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    return value.model_dump() if hasattr(value, "model_dump") else value


def _has_sidecar(path: Path) -> bool:
    return path.suffix == ".tar" and sidecar_path(path).exists()
