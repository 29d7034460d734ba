"""What a result depends on, as one short word: the code that makes it, its parameters and its input files."""

import ast
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.files import sha256
from pipeline.shards import sidecar_path

SOURCE = Path(__file__).resolve().parents[1]
PACKAGES = ("model", "pipeline", "stages")
# How a stage is called and how it reports cannot change what it makes.
PLUMBING = {f"pipeline/{name}.py" for name in ("params", "scales", "errors", "progress", "plan", "costs", "scratch", "stage", "cli", "doctor")}


def fingerprint(code: str, *inputs: Any) -> str:
    """16 hexadecimal digits that depend on every input, on the module `code` (a `__file__`) with all it imports of ours, and on torch's version.

    A Path counts with what is in it: a folder with all its files, where a shard is taken by its sidecar, which holds its checksum. A
    dataclass or a pydantic model counts with its values, everything else as JSON. Raises UserError for a path that is not there.
    """
    files = closure(Path(code).resolve().relative_to(SOURCE).as_posix())
    text = json.dumps([torch.__version__, [(file, sha256(SOURCE / file)) for file in files], *map(_summary, inputs)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def closure(file: str) -> list[str]:
    """The files of our code that `file` (relative to SOURCE) imports, directly or not, without PLUMBING; itself first."""
    seen: set[str] = set()
    todo = [file]
    while todo:
        name = todo.pop()
        if name not in seen and name not in PLUMBING:
            seen.add(name)
            todo.extend(imports(name))
    return [file, *sorted(seen - {file})]


@cache
def imports(file: str) -> frozenset[str]:
    """The files of our code that `file` imports, anywhere in it."""
    names = set(_imported(ast.parse((SOURCE / file).read_text())))
    files = {f"{name.replace('.', '/')}.py" for name in names if name.split(".")[0] in PACKAGES}
    return frozenset(name for name in files if (SOURCE / name).is_file())


def _imported(tree: ast.Module) -> Iterator[str]:
    """Names of modules; of `from a import b` both a and a.b, as b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or not node.module:
                raise ValueError("imports in this project are absolute")
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def _summary(value: Any) -> Any:
    if isinstance(value, Path):
        if value.is_file():
            return sha256(value)
        if not value.is_dir():
            raise UserError(f"{value} is missing. Run the stage that makes it: dvc repro.")
        files = sorted(path for path in value.rglob("*") if path.is_file() and not (path.suffix == ".tar" and sidecar_path(path).exists()))
        return [(path.relative_to(value).as_posix(), sha256(path)) for path in files]
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    return value.model_dump() if hasattr(value, "model_dump") else value
