"""The plan of a run: written and said before any work starts, refused when the disk cannot hold it; and what it came to in the end."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.core.costs import Costs
from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.core.progress import say
from pipeline.engine.scratch import readable
from pipeline.engine.work_unit import Done, WorkUnit

PNG_BYTES = 1.5  # per RGB pixel of a photo, roughly; a mask takes a tenth of that
FIELD_BYTES = 768  # of a tar for each file: its header and half a block of padding


def sample_bytes(pixels: int, fields: int) -> float:
    """Roughly what a sample takes with so many RGB pixels in PNG files and so many fields."""
    return pixels * PNG_BYTES + fields * FIELD_BYTES


@dataclass(frozen=True)
class Estimate:
    """All units of a run. `counts` says what an item makes, the item itself first: {"frames": 1, "views": 4}; `item_bytes` how much it takes,
    roughly (0: unknown)."""

    label: str
    units: Sequence[WorkUnit]
    counts: Mapping[str, int]
    item_bytes: float = 0.0

    @property
    def noun(self) -> str:
        """What an item is called."""
        return next(iter(self.counts))

    def start(self, done: Mapping[str, Done], scratch: Path, workers: int) -> None:
        """Write plan.json and say what is left to do. Raises UserError when the disk cannot hold it."""
        write_json(scratch / "plan.json", {"units": [asdict(unit) for unit in self.units]})
        left = [unit for unit in self.units if unit.name not in done]
        if not left:
            say(f"{self.label}: all {_many(len(self.units), 'shards')} are done already")
            return
        known = list(done.values())
        size = _predict(left, known, lambda one: one.shard.bytes if one.shard else 0, self.item_bytes)
        earlier = Costs.open.earlier(self.label) if Costs.open else {}
        seconds = _predict(left, known, lambda one: one.seconds, earlier.get("worker_seconds_per_item", 0.0))
        free = shutil.disk_usage(scratch).free
        items = sum(len(unit.items) for unit in left)
        count = ", ".join(_many(number * items, name) for name, number in self.counts.items())
        shards = f"{len(left):,} of {_many(len(self.units), 'shards')} to do" + (
            f", {len(done):,} done already" if done else ""
        )
        takes = f"about {readable(size)}" if size else "size not known yet"
        lasts = f"about {_time(seconds / max(workers, 1))}" if seconds else "time not known yet"
        say(f"{self.label}: {shards}: {count}; {takes}, {readable(free)} free; {lasts}")
        if size > free:
            raise UserError(
                f"{self.label}: what is left to do takes about {readable(size)}, but the disk of {scratch} has only {readable(free)} free. "
                "Free some space (`psi4d clean` removes what earlier runs left), then run again."
            )

    def end(self, fresh: Sequence[Done], seconds: float) -> None:
        """Note what the units that were done now cost, in `seconds` all together, and say which items were given up."""
        rejects = [(one.name, reject) for one in fresh for reject in one.rejects]
        for name, reject in rejects[:5]:
            say(f"{self.label}: given up: {reject.item} of {name}: {reject.reason}")
        if len(rejects) > 5:
            say(f"{self.label}: given up: {len(rejects) - 5} more")
        if Costs.open:
            items = sum(_passed(self.units, fresh))
            rate = {
                "item": self.noun,
                "items": items,
                "items_per_second": round(items / max(seconds, 1e-3), 3),
                "worker_seconds_per_item": round(sum(one.seconds for one in fresh) / items, 4)
                if items
                else 0.0,
                "bytes": sum(one.shard.bytes for one in fresh if one.shard),
                "units": len(fresh),
                "given_up": len(rejects),
            }
            Costs.open.work[self.label] = rate if items else Costs.open.earlier(self.label)


def _passed(units: Sequence[WorkUnit], done: Sequence[Done]) -> list[int]:
    """How many items of each unit that is done were not given up."""
    sizes = {unit.name: len(unit.items) for unit in units}
    return [sizes[one.name] - len(one.rejects) for one in done]


def _predict(
    left: Sequence[WorkUnit], done: Sequence[Done], value: Callable[[Done], float], item: float
) -> float:
    """The sum of `value` over the units that are left: by the mean of the units that are done whose shards have the same prefix, and by
    `item` for each item where there is none; 0 where neither is known."""
    sums: dict[str, list[float]] = {}
    for one in done:
        sums.setdefault(_prefix(one.name), []).append(value(one))
    known = [
        sum(sums[prefix]) / len(sums[prefix])
        if (prefix := _prefix(unit.name)) in sums
        else len(unit.items) * item
        for unit in left
    ]
    return sum(known) if all(known) else 0.0


def _prefix(name: str) -> str:
    return name.rpartition("-")[0]


def _many(number: int, name: str) -> str:
    return f"{number:,} {name.removesuffix('s') if number == 1 else name}"


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} minutes"
        if seconds < 5400
        else f"{seconds / 3600:.1f} hours"
    )
