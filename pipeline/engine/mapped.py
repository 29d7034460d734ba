"""Arrays on disk that are made once of large tables, and that all processes of a stage share.

A table of Parquet is compressed, so that a row of it cannot be read without thousands of others. Arrays that
are mapped into memory are read where they are looked at, and the system takes their pages back when memory
is short. They lie in `.cache/psi4d/mapped` and follow from their tables: to remove them costs minutes, no
result.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.paths import MAPPED
from pipeline.engine.fingerprint import fingerprint


def mapped_folder(
    name: str,
    build: Callable[[Path], None],
    code: str,
    *inputs: Any,
) -> Path:
    """The folder that `build` fills, made now or by an earlier run of the same `code` and `inputs`.

    `code` and `inputs` are those of `fingerprint`. Folders of this name for other inputs are removed. Raises
    UserError when the place cannot be written, and what `build` raises.
    """
    mark = fingerprint(code, *inputs)
    root = Path(os.environ.get("DVC_ROOT", ".")).resolve() / MAPPED
    folder = root / f"{name}-{mark}"
    try:
        with _alone(root / f"{name}.lock"):
            if not folder.is_dir():
                _make(folder, build)
            # A process that still reads an older one keeps its pages until it ends.
            for older in root.glob(f"{name}-*"):
                if older != folder:
                    shutil.rmtree(older, ignore_errors=True)
    except OSError as error:
        advice = "Make the folder writable or free some space, then run again."
        raise UserError(f"cannot write {folder}: {error.strerror}. {advice}") from error
    return folder


def _make(folder: Path, build: Callable[[Path], None]) -> None:
    """Fill a folder that appears whole or not at all."""
    half = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    build(half)
    half.rename(folder)


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """While this lasts, no other process is in it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    # The processes of a training all come here; one of them does the work, the others find it done.
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
