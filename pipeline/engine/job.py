"""What a sharded stage has to do, in one place for the stage itself and for the repair of its shards."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.engine.fingerprint import inputs_fingerprint
from pipeline.engine.ray_workers import WorkerSettings
from pipeline.engine.run import run_units
from pipeline.engine.scratch import adopt
from pipeline.engine.work_unit import Done, Work, WorkUnit, mark


@dataclass(frozen=True)
class Job:
    """The units of a stage, and who does them.

    Each unit says what it depends on, so that one that an earlier run of the stage did is not done again.
    `make_worker`, `counts`, `item_bytes` and `gpu` are those of `run_units`. `tables(shards, out)` writes the
    tables of a folder from its whole shards, and returns what it likes; it is None where the tables hold what
    no shard knows. `rejected(done, scratch)` has the items that a finished unit refused.
    """

    label: str
    units: Sequence[WorkUnit]
    make_worker: Callable[[], Work]
    counts: Mapping[str, int]
    item_bytes: float = 0.0
    gpu: bool = False
    tables: Callable[[Path, Path], Any] | None = None
    rejected: Callable[[Done, Path], Sequence[str]] | None = None

    def __post_init__(self) -> None:
        # Without them stale units would be taken for finished ones.
        if not all(unit.inputs and unit.code for unit in self.units):
            raise ValueError(f"{self.label}: a unit does not say what it depends on")

    @property
    def mark(self) -> str:
        """The fingerprint of all units, by which their scratch folder is called."""
        return inputs_fingerprint([mark(unit) for unit in self.units])

    def run(
        self, scratch: str | Path, machine: WorkerSettings, only: Collection[str] | None = None
    ) -> list[Done]:
        """Do all units in `scratch`, or those with the names `only`. Raises UserError as `run_units`."""
        units = [unit for unit in self.units if only is None or unit.name in only]
        adopt(self.label, units, Path(scratch))
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
