"""Which imported synthesizers trainings begin with, or are: the graph depends on this, not on their files.

A training depends on the one that it wants alone, so that another import does not start it anew.
"""

import json
from pathlib import Path

from pipeline.core.files import write_json

DISCRIMINATOR = "-discriminator"  # behind the name of the synthesizer that it judged


def write_wanted(out: Path, folder: Path, wanted: bool) -> None:
    """Write to `out` the checksums of the synthesizer with its name in `folder`, and of its discriminator.

    Nothing is in there when it is not `wanted`, or not imported.
    """
    sums: dict[str, str] = {}
    names = (out.stem, f"{out.stem}{DISCRIMINATOR}") if wanted else ()
    for name in names:
        told = folder / f"{name}.json"
        if told.is_file():
            sums[name] = json.loads(told.read_bytes()).get("sha256", "")
    write_json(out, sums)
