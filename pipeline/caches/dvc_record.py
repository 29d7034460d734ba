"""What DVC knows of an output: the files it had when its stage ended, and whether the inputs have changed."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.output import Output
from dvc.repo import Repo

from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes
from pipeline.engine.code_mark import changed_code


def md5(path: Path) -> str:
    """The MD5 of a file, by which DVC knows it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def recorded_files(folder: Path) -> dict[str, str]:
    """The MD5 of every file of `folder` by its relative path, as dvc.lock and DVC's cache have it.

    Empty where they know nothing of it.
    """
    try:
        with Repo(".") as repo:
            [output] = repo.find_outs_by_path(str(folder))
            tree = output.get_obj()
            if not tree or not output.hash_info.isdir:
                return {}
            return {"/".join(parts): info.value for parts, _, info in tree}
    except DvcException:  # no repository, or one that does not make this folder
        return {}


def changed_inputs(folder: Path) -> list[str]:
    """What the stage that makes `folder` depends on and has changed since it ran.

    Raises UserError when no stage makes it or none has run.
    """
    with _output(folder) as output:
        name = output.stage.addressing
        changes = output.repo.status([name]).get(name, [])
    # The marks of the code, which DVC compares, are as old as the last run of the stage `code`.
    changed = changed_code(name.partition("@")[0])
    if "changed checksum" in changes:
        changed.append("its command in dvc.yaml")
    for change in changes:
        dependencies = change.get("changed deps", {}) if isinstance(change, dict) else {}
        for path, state in dependencies.items():
            # Of params.yaml DVC names the keys that have changed, of data the path alone.
            if isinstance(state, dict):
                changed += [f"{path}: {key}" for key in state]
            else:
                changed.append(path)
    return changed


def is_as_recorded(folder: Path) -> bool:
    """Whether `folder` has, byte for byte, the files that dvc.lock records.

    Raises UserError as `changed_inputs`.
    """
    with _output(folder) as output:
        return not output.workspace_status()


def mend_cache(folder: Path, names: Iterable[str]) -> None:
    """Put these files of `folder` into DVC's cache where it has them altered.

    Where both are one file by a hard link, they share their damage.
    """
    # DVC trusts its cache and would link the damage back into the folder at the next checkout. Its files are
    # read-only, and stay so.
    recorded = recorded_files(folder)
    with _output(folder) as output:
        for name in recorded.keys() & set(names):
            kept = Path(output.cache.oid_to_path(recorded[name]))
            if kept.is_file() and md5(kept) != recorded[name]:
                mode = kept.stat().st_mode
                write_bytes(kept, (folder / name).read_bytes()).chmod(mode)


@contextlib.contextmanager
def _output(folder: Path) -> Iterator[Output]:
    """DVC's output `folder`, whose stage has run once."""
    unknown = f"it is not known with what inputs {folder} was made"
    try:
        with Repo(".") as repo:
            [output] = repo.find_outs_by_path(str(folder))
            if not output.hash_info:
                raise UserError(f"{unknown}: dvc.lock has nothing of it. Run `dvc repro` instead.")
            yield output
    except DvcException as error:
        raise UserError(
            f"{unknown}: {error}. Only what a stage of dvc.yaml makes can be made again."
        ) from error
