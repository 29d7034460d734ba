"""The JSON of a benchmark, with what its numbers belong to."""

from pathlib import Path
from typing import Any

from pipeline.bench.machine import machine_facts
from pipeline.core.files import write_json


def record(
    path: Path | None,
    benchmark: str,
    numbers: dict[str, Any],
) -> None:
    """Writes the numbers of a benchmark to `path`, if there is one."""
    # A number without the machine and the commit that made it cannot be compared with another one.
    if path:
        write_json(path, {"benchmark": benchmark, "machine": machine_facts(), **numbers})
