"""What a sharded stage has to do, in one place for the stage itself and for the repair of its shards."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.files import write_bytes
from pipeline.engine.ray_workers import WorkerSettings
from pipeline.engine.run import run_units
from pipeline.engine.scratch import INPUTS
from pipeline.engine.work_unit import Done, Work, WorkUnit


@dataclass(frozen=True)
class Job:
    """The units of a stage, who does them, and what they depend on.

    `mark` is the fingerprint of code, params and inputs. `make_worker`, `counts`, `item_bytes` and `gpu` are
    those of `run_units`. `tables(shards, out)` writes the tables of a folder from its whole shards, and
    returns what it likes; it is None where the tables hold what no shard knows.

    For a retry: `inputs` is the fingerprint of all that a finished unit depends on except for the code and
    for files that `changed(unit, since)` asks for; it says whether they have changed since that time.
    `rejected(done, scratch)` has the items that a finished unit refused.
    """

    label: str
    mark: str
    units: Sequence[WorkUnit]
    make_worker: Callable[[], Work]
    counts: Mapping[str, int]
    item_bytes: float = 0.0
    gpu: bool = False
    tables: Callable[[Path, Path], Any] | None = None
    inputs: str = ""
    changed: Callable[[WorkUnit, float], bool] | None = None
    rejected: Callable[[Done, Path], Sequence[str]] | None = None

    def run(
        self, scratch: str | Path, machine: WorkerSettings, only: Collection[str] | None = None
    ) -> list[Done]:
        """Do all units in `scratch`, or those with the names `only`. Raises UserError as `run_units`."""
        units = [unit for unit in self.units if only is None or unit.name in only]
        write_bytes(Path(scratch) / INPUTS, self.inputs.encode())
        return run_units(
            units,
            self.make_worker,
            scratch,
            machine,
            self.label,
            self.counts,
            self.item_bytes,
            self.gpu,
        )
