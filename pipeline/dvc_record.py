"""What DVC knows of an output: the files it had when its stage ended, and whether the stage's inputs are still the same."""

import hashlib
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo

from pipeline.errors import UserError


def md5(path: Path) -> str:
    """The MD5 of a file, by which DVC knows it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def recorded_files(folder: Path) -> dict[str, str]:
    """The MD5 of every file of `folder` by its relative path, as dvc.lock and DVC's cache have it; empty where they know nothing of it."""
    try:
        with Repo(".") as repo:
            [output] = repo.find_outs_by_path(str(folder))
            tree = output.get_obj()
            return {"/".join(parts): info.value for parts, _, info in tree} if tree and output.hash_info.isdir else {}
    except DvcException:  # no repository, or one that does not make this folder
        return {}


def changed_inputs(folder: Path) -> list[str]:
    """What the stage that makes `folder` depends on and has changed since it ran. Raises UserError when no stage makes it or none has run."""
    changed: list[str] = []
    for name, state in _changes(folder, "changed deps").items():
        changed += [f"{name}: {key}" for key in state] if isinstance(state, dict) else [name]  # of params.yaml, the values that have changed
    return changed


def is_as_recorded(folder: Path) -> bool:
    """Whether `folder` has, byte for byte, the files that dvc.lock records. Raises UserError as `changed_inputs`."""
    return not any(Path(name).resolve() == folder.resolve() for name in _changes(folder, "changed outs"))


def _changes(folder: Path, kind: str) -> dict[str, Any]:
    """What `dvc status` of the stage that makes `folder` lists under `kind`."""
    unknown = f"it is not known with what inputs {folder} was made"
    try:
        with Repo(".") as repo:
            [output] = repo.find_outs_by_path(str(folder))
            if not output.hash_info:
                raise UserError(f"{unknown}: dvc.lock has nothing of it. Run `dvc repro` instead.")
            name = output.stage.addressing
            changes = repo.status([name]).get(name, [])
    except DvcException as error:
        raise UserError(f"{unknown}: {error}. Only what a stage of dvc.yaml makes can be made again.") from error
    if "changed checksum" in changes:
        changes = [{"changed deps": {"its command in dvc.yaml": "modified"}}, *changes]
    return {entry: state for change in changes if isinstance(change, dict) for entry, state in change.get(kind, {}).items()}
