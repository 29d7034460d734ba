"""Scratch folders: where a stage works until its result is whole.

Each belongs to one fingerprint, so nothing stale is ever mixed in:
`.cache/psi4d/scratch/<stage>/<fingerprint>`. The file `<stage>.current` names the one in which the last run
of the stage worked, `<stage>.error` says what it failed of. Once the stage has come to its end, the folder is
`.cache/psi4d/units/<stage>`: the next run takes the units from there that are the same, and `psi4d status`
and `psi4d retry` read their records. Its shards are hard links to those of the result and of DVC's cache,
which cost no disk. On a file system without such links they cost as much once more.
"""

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes, write_json
from pipeline.core.progress import say
from pipeline.core.readable import readable_bytes, readable_count
from pipeline.engine.work_unit import Done, WorkUnit, files_of, finished, record_path
from pipeline.store.shards import sidecar_path

SHOWN = 3  # folders that are named in a message
PLAN = "plan.json"


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


def write_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    """Write what a run is going to do in `folder`, and which process does it since when.

    Raises UserError when the place cannot be written.
    """
    process = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
    write_json(folder / PLAN, {**plan, **process})


def read_plan(folder: Path) -> dict[str, Any]:
    """What the last run in `folder` was going to do; empty where there is nothing that can be read."""
    try:
        return json.loads((folder / PLAN).read_bytes())
    except (OSError, ValueError):
        return {}


def is_running(plan: Mapping[str, Any]) -> bool:
    """Whether the process of a plan is alive on this machine."""
    number = plan.get("pid")
    if plan.get("host") != socket.gethostname() or number is None:
        return False
    try:
        process = psutil.Process(number)
        # Numbers of processes come again: one that is younger than the plan is another.
        return process.create_time() <= plan["started"] and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError):
        return False


def note_error(stage: str, text: str) -> None:
    """Keep what a stage failed of; with an empty text forget it. Where that is impossible nothing happens."""
    path = _error(_root() / stage)
    with contextlib.suppress(UserError, OSError):
        if text:
            write_bytes(path, text.encode())
        else:
            path.unlink(missing_ok=True)


def last_error(stage: str) -> str:
    """What the last run of a stage failed of, or nothing."""
    path = _error(_root() / stage)
    return path.read_text() if path.is_file() else ""


def stages() -> list[str]:
    """The stages that have worked here, in alphabetical order."""
    return sorted(path.stem for path in _root().glob("*.current"))


def last_folder(stage: str) -> Path | None:
    """Where the last run of a stage worked, or where the records of what it published lie."""
    current = _current(_root() / stage)
    if not current.is_file():
        return None
    folder = _root() / stage / current.read_text()
    return folder if folder.is_dir() else units_folder(stage)


def units_folder(stage: str) -> Path:
    """Where the units lie that the last run of a stage finished, once it has come to its end."""
    return _root().with_name("units") / stage


def leftovers() -> list[Leftover]:
    """All scratch folders of all stages."""
    return [found for folder in sorted(_root().glob("*")) if folder.is_dir() for found in _leftovers(folder)]


def finished_units() -> list[Leftover]:
    """The finished units of the last run of each stage.

    Without them the next run does all units. Their bytes are free once the result itself is gone.
    """
    return [_leftover(folder, current=False) for folder in sorted(units_folder("").glob("*/"))]


def remove(leftover: Leftover) -> None:
    """Remove a scratch folder. Raises UserError when that is not allowed."""
    try:
        shutil.rmtree(leftover.path)
    except OSError as error:
        problem = f"cannot remove {leftover.path}: {error.strerror}"
        raise UserError(f"{problem}. Make it writable, then run again.") from error


def publish(scratch: str | Path, out: str | Path) -> None:
    """Show the shards of `scratch` (and their sidecars) as the folder `out`, replacing it in one step.

    Then the units are kept for the next run (see `keep`). Raises UserError when `out` cannot be written.
    """
    # The new folder is whole before it takes its name, so that no reader sees half of it. Links cost no disk.
    scratch, out = Path(scratch), Path(out)
    shown = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        shown.mkdir(parents=True)
        for path in sorted(scratch.glob("*.tar")):
            for file in (path, sidecar_path(path)):
                link_or_copy(file, shown / file.name)
        if out.exists():
            shutil.rmtree(out)
        os.rename(shown, out)
    except OSError as error:
        advice = "Make the folder writable or free some space, then run again."
        raise UserError(f"cannot write {out}: {error.strerror}. {advice}") from error
    finally:
        shutil.rmtree(shown, ignore_errors=True)
    keep(scratch)


def keep(scratch: Path) -> None:
    """Make the units in a scratch folder those that the next run of its stage begins with.

    Those of the run before go; a folder that belongs to no stage is removed.
    """
    if scratch.resolve().parent.parent != _root().resolve():
        shutil.rmtree(scratch, ignore_errors=True)
        return
    kept = units_folder(scratch.parent.name)
    shutil.rmtree(kept, ignore_errors=True)
    # Where they cannot be kept, the next run does all of them.
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        scratch.rename(kept)


def finished_folders(stage: str) -> list[Path]:
    """Where finished units of a stage may lie: those of the last run first, then those of stopped ones."""
    return [units_folder(stage), *sorted((_root() / stage).glob("*/"))]


def adopt(stage: str, units: Sequence[WorkUnit], scratch: Path) -> None:
    """Link into `scratch` those of `units` that an earlier run of the stage has finished.

    What is linked is not looked at: `run_units` compares it with its checksums, and does it again when it is
    damaged. A unit of which something was given up is not taken: what was wrong may have been mended.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    folders = finished_folders(stage)
    for unit in units:
        if finished(unit, scratch, verify=False):
            continue
        for folder in folders:
            done = finished(unit, folder, verify=False)
            if done and not done.rejects and all(file.exists() for file in files_of(done, folder)):
                link_unit(done, folder, scratch)
                break


def link_unit(done: Done, folder: Path, to: Path) -> None:
    """Give the files of a finished unit in `folder` a second name in `to`."""
    record = record_path(WorkUnit(done.name, []), folder)
    # The record comes last, as it says that the rest is there.
    for file in [*files_of(done, folder), record]:
        (to / file.name).unlink(missing_ok=True)
        link_or_copy(file, to / file.name)


def link_or_copy(file: Path, to: Path) -> None:
    """A second name for a file; a copy on another file system, or on one without links."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copy2(file, to)


def _root() -> Path:
    # DVC tells a stage the root of its project.
    return Path(os.environ.get("DVC_ROOT", ".")) / ".cache" / "psi4d" / "scratch"


def _current(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.current")


def _error(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.error")


def _leftovers(folder: Path) -> list[Leftover]:
    current = _current(folder).read_text() if _current(folder).is_file() else ""
    found = []
    for path in sorted(folder.glob("*")):
        if path.is_dir():
            found.append(_leftover(path, path.name == current))
    return found


def _leftover(path: Path, current: bool) -> Leftover:
    sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
    return Leftover(path, sum(sizes), current)
