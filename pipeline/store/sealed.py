"""Sealed files: data with a JSON beside it that says what it is and holds its checksum.

Both are written under temporary names, flushed to the disk and then renamed, the JSON first. So data that
is there has its JSON. A writer that is killed leaves the earlier pair; between the two renames it leaves a
JSON that belongs to other data, which a reader refuses and `recover` mends. Weights are read by
model/weights.py, because networks import nothing of the pipeline.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.core.errors import UserError
from pipeline.core.files import replacing, sha256

REMEDY = "Make it again by running its stage: dvc repro."


@dataclass
class Draft:
    """A sealed file that is being written: its data goes to `file`, what its JSON says into `facts`."""

    file: BinaryIO
    facts: dict[str, Any] = field(default_factory=dict)


def seal_path(path: str | Path) -> Path:
    """Where the JSON of the data `path` lies: x.safetensors has x.json, and x.tar has x.tar.json."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return path.with_suffix(".json")
    return path.with_name(f"{path.name}.json")


@contextlib.contextmanager
def sealing(path: str | Path, *, compact: bool = False) -> Iterator[Draft]:
    """Write data piece by piece; both files appear when the block ends, and neither does when it raises.

    `sha256` joins the facts, in hexadecimal. Equal data and facts make equal bytes: the JSON is indented
    and sorted for people, or `compact` and in the order of the facts. Raises UserError when the place
    cannot be written, and ValueError or TypeError for facts that are no JSON.
    """
    path = Path(path)
    # The outer file is renamed when its block ends, and so after the JSON.
    with replacing(path) as file:
        draft = Draft(file)
        yield draft
        # On the disk before the JSON is: `recover` counts on it.
        file.flush()
        os.fsync(file.fileno())
        draft.facts["sha256"] = sha256(file.name)
        text = _text(draft.facts, compact)
        with replacing(seal_path(path)) as seal:
            seal.write(text.encode())


def write_sealed(
    path: str | Path,
    data: bytes,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write `data` with `facts` beside it; returns the facts with the checksum. Raises as `sealing`."""
    with sealing(path) as draft:
        draft.facts.update(facts)
        draft.file.write(data)
    return draft.facts


def read_facts(path: str | Path, remedy: str = REMEDY) -> dict[str, Any]:
    """What the JSON of `path` says, without a look at the data.

    Raises UserError when the JSON is missing or damaged; `remedy` is the sentence that says what to do.
    """
    path, seal = Path(path), seal_path(path)
    try:
        facts = json.loads(seal.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} has no {seal.name} beside it. {remedy}") from error
    except ValueError as error:
        raise UserError(f"{seal} is damaged. {remedy}") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("sha256"), str):
        raise UserError(f"{seal} is damaged. {remedy}")
    return facts


def check_sealed(path: str | Path, remedy: str = REMEDY) -> dict[str, Any]:
    """The facts of `path`, once all of its data has been read and compared with its checksum.

    Raises UserError when one of the two files is missing or damaged or when they do not belong together.
    """
    facts = read_facts(path, remedy)
    if not Path(path).is_file():
        raise UserError(f"{path} is missing. {remedy}")
    if sha256(path) != facts["sha256"]:
        raise _altered(path, remedy)
    return facts


def read_sealed(
    path: str | Path,
    remedy: str = REMEDY,
) -> tuple[bytes, dict[str, Any]]:
    """The data of `path` and its facts. Raises UserError as `check_sealed`."""
    # Read once: what is returned is what was checked, even if another process replaces the file meanwhile.
    facts = read_facts(path, remedy)
    if not Path(path).is_file():
        raise UserError(f"{path} is missing. {remedy}")
    data = Path(path).read_bytes()
    if hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise _altered(path, remedy)
    return data, facts


def recover(path: str | Path) -> None:
    """Finish the second rename of a writer that was killed before it; nothing happens where there is no need.

    To be called where nothing else writes `path`. The JSON decides: data under a temporary name is the
    right one if it has the checksum that the JSON holds.
    """
    path = Path(path)
    with contextlib.suppress(UserError):
        wanted = read_facts(path)["sha256"]
        if path.is_file() and sha256(path) == wanted:
            return
        # The name holds the number of a process, which is another one now.
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            if sha256(left) == wanted:
                left.replace(path)
                return


def remove_sealed(path: str | Path) -> None:
    """Remove both files, the data first; it is no error when they are not there."""
    # Killed in between, it leaves a JSON alone, which no reader takes for data.
    Path(path).unlink(missing_ok=True)
    seal_path(path).unlink(missing_ok=True)


def _text(facts: Mapping[str, Any], compact: bool) -> str:
    if compact:
        return json.dumps(facts, separators=(",", ":"), allow_nan=False)
    return json.dumps(facts, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _altered(path: str | Path, remedy: str) -> UserError:
    return UserError(f"{path} is damaged: its checksum is not the one in {seal_path(path).name}. {remedy}")
