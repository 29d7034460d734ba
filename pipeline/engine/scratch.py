"""Scratch folders: where a stage works until its result is whole.

Each belongs to one fingerprint, so nothing stale is ever mixed in:
`.cache/psi4d/scratch/<stage>/<fingerprint>`. The file `<stage>.current` names the one in which the last run
of the stage worked.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes
from pipeline.core.progress import say
from pipeline.core.readable import readable_bytes, readable_count
from pipeline.store.shards import sidecar_path

SHOWN = 3  # folders that are named in a message


@dataclass(frozen=True)
class Leftover:
    """A scratch folder of an earlier run.

    `current`: the last run of its stage worked in it, and the next one may go on from it.
    """

    path: Path
    bytes: int
    current: bool


def scratch_folder(stage: str, mark: str) -> Path:
    """The folder in which the stage does its work; `mark` is the fingerprint of its inputs.

    Says which older ones lie beside it.
    """
    folder = _root() / stage
    write_bytes(_current(folder), mark.encode())
    older = [found for found in _leftovers(folder) if not found.current]
    if older:
        listed = [f"{found.path.name} {readable_bytes(found.bytes)}" for found in older[:SHOWN]]
        sizes = ", ".join(listed) + (" ..." if len(older) > SHOWN else "")
        total = readable_bytes(sum(found.bytes for found in older))
        folders = readable_count(len(older), "scratch folders")
        say(f"{stage}: {folders} of other inputs or code, {total} ({sizes}); `psi4d clean` removes them")
    return folder / mark


def leftovers() -> list[Leftover]:
    """All scratch folders of all stages."""
    return [found for folder in sorted(_root().glob("*")) if folder.is_dir() for found in _leftovers(folder)]


def remove(leftover: Leftover) -> None:
    """Remove a scratch folder. Raises UserError when that is not allowed."""
    try:
        shutil.rmtree(leftover.path)
    except OSError as error:
        problem = f"cannot remove {leftover.path}: {error.strerror}"
        raise UserError(f"{problem}. Make it writable, then run again.") from error


def publish(scratch: str | Path, out: str | Path) -> None:
    """Show the shards of `scratch` (and their sidecars) as the folder `out`, replacing it in one step.

    Then the scratch folder is removed. Raises UserError when `out` cannot be written.
    """
    # The new folder is whole before it takes its name, so that no reader sees half of it. Links cost no disk.
    scratch, out = Path(scratch), Path(out)
    shown = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        shown.mkdir(parents=True)
        for path in sorted(scratch.glob("*.tar")):
            for file in (path, sidecar_path(path)):
                _link_or_copy(file, shown / file.name)
        if out.exists():
            shutil.rmtree(out)
        os.rename(shown, out)
    except OSError as error:
        advice = "Make the folder writable or free some space, then run again."
        raise UserError(f"cannot write {out}: {error.strerror}. {advice}") from error
    finally:
        shutil.rmtree(shown, ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)


def _link_or_copy(file: Path, to: Path) -> None:
    """A second name for a file; a copy on another file system, or on one without links."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)


def _root() -> Path:
    # DVC tells a stage the root of its project.
    return Path(os.environ.get("DVC_ROOT", ".")) / ".cache" / "psi4d" / "scratch"


def _current(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.current")


def _leftovers(folder: Path) -> list[Leftover]:
    current = _current(folder).read_text() if _current(folder).is_file() else ""
    found = []
    for path in sorted(folder.glob("*")):
        if path.is_dir():
            sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
            found.append(Leftover(path, sum(sizes), path.name == current))
    return found
