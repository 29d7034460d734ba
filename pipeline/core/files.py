"""Writing files so that no reader sees half of one: temporary name, flush, rename."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.core.errors import UserError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file that becomes `path` in one step when the block ends, and vanishes when the block raises.

    Makes the folder. Raises UserError when the place cannot be written (read-only, full).
    """
    # Another process may write the same file, so the temporary name has the process in it. The data must be
    # on disk before the rename is, or a power cut could leave an empty file under the right name.
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        advice = "Make the folder writable or free some space, then run again."
        raise UserError(f"cannot write {path}: {error.strerror}. {advice}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write `data` to `path` in one step, making the folder.

    Raises UserError when the place cannot be written.
    """
    with replacing(path) as file:
        file.write(data)
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as JSON with sorted keys, so that equal values are equal bytes."""
    return write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(path: str | Path) -> str:
    """A sample key from a relative path: lower case letters, digits, - and _ only, told apart by a hash.

    A dot would split a WebDataset key.
    """
    # Long names are cut, and letters that a key cannot have become dashes. The hash keeps such keys apart.
    text = Path(path).as_posix()
    stem = re.sub(r"[^a-z0-9_-]+", "-", str(Path(text).with_suffix("")).lower()).strip("-")
    return f"{stem[:48]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
