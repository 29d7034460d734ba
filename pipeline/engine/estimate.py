"""The plan of a run: written and said before any work starts, refused when the disk cannot hold it.

In the end it is noted what the run came to.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.core.costs import Costs
from pipeline.core.errors import UserError
from pipeline.core.progress import say
from pipeline.core.readable import readable_bytes, readable_count, readable_time
from pipeline.engine.scratch import write_plan
from pipeline.engine.work_unit import Done, WorkUnit

SHOWN = 5  # items that were given up


@dataclass(frozen=True)
class Estimate:
    """All units of a run.

    `counts` says what an item makes, the item itself first: {"frames": 1, "views": 4}; `item_bytes` how much
    it takes on disk, roughly (0: unknown).
    """

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
        # The plan is on disk before the work, for people who look at a run that stopped.
        write_plan(scratch, {"units": [asdict(unit) for unit in self.units], "noun": self.noun})
        left = [unit for unit in self.units if unit.name not in done]
        if not left:
            say(f"{self.label}: all {readable_count(len(self.units), 'shards')} are done already")
            return
        known = list(done.values())
        size = _predict(left, known, _bytes, self.item_bytes)
        seconds = self.seconds(left, done)
        free = shutil.disk_usage(scratch).free
        lasts = f"about {readable_time(seconds / max(workers, 1))}" if seconds else "time not known yet"
        takes = f"about {readable_bytes(size)}" if size else "size not known yet"
        disk = f"{takes}, {readable_bytes(free)} free"
        say(f"{self.label}: {self._shards(len(left))}: {self._items(left)}; {disk}; {lasts}")
        if size > free:
            raise UserError(
                f"{self.label}: what is left to do takes about {readable_bytes(size)}, but the disk of "
                f"{scratch} has only {readable_bytes(free)} free. Free some space (`psi4d clean` removes "
                "what earlier runs left), then run again."
            )

    def seconds(self, left: Sequence[WorkUnit], done: Mapping[str, Done]) -> float:
        """How long one worker takes for the units that are left; 0 where it is not known."""
        earlier = Costs.open.earlier(self.label) if Costs.open else {}
        return _predict(left, list(done.values()), _seconds, earlier.get("worker_seconds_per_item", 0.0))

    def end(self, fresh: Sequence[Done], seconds: float) -> None:
        """Note what the units that were done now cost, and say which items were given up.

        `seconds` is how long all of them took together.
        """
        rejects = [(one.name, reject) for one in fresh for reject in one.rejects]
        for name, reject in rejects[:SHOWN]:
            say(f"{self.label}: given up: {reject.item} of {name}: {reject.reason}")
        if len(rejects) > SHOWN:
            say(f"{self.label}: given up: {len(rejects) - SHOWN} more")
        if Costs.open:
            rate = self._rate(fresh, seconds)
            # When nothing was left to do, the rate of the run that did it stays.
            Costs.open.work[self.label] = rate if rate["items"] else Costs.open.earlier(self.label)

    def _shards(self, left: int) -> str:
        """How many units are left, and how many are done."""
        total, done = len(self.units), len(self.units) - left
        text = f"{left:,} of {readable_count(total, 'shards')} to do"
        return f"{text}, {done:,} done already" if done else text

    def _items(self, left: Sequence[WorkUnit]) -> str:
        """How many items are left, and what they make."""
        items = sum(len(unit.items) for unit in left)
        return ", ".join(readable_count(number * items, name) for name, number in self.counts.items())

    def _rate(self, fresh: Sequence[Done], seconds: float) -> dict[str, float | str]:
        """What the file of costs says of this work; items that were given up are none."""
        sizes = {unit.name: len(unit.items) for unit in self.units}
        given_up = sum(len(one.rejects) for one in fresh)
        items = sum(sizes[one.name] for one in fresh) - given_up
        worked = sum(map(_seconds, fresh))
        return {
            "item": self.noun,
            "items": items,
            "items_per_second": round(items / max(seconds, 1e-3), 3),
            "worker_seconds_per_item": round(worked / items, 4) if items else 0.0,
            "bytes": sum(map(_bytes, fresh)),
            "units": len(fresh),
            "given_up": given_up,
        }


def _predict(
    left: Sequence[WorkUnit], done: Sequence[Done], value: Callable[[Done], float], item: float
) -> float:
    """The sum of `value` over the units that are left; 0 where it is not known of all of them.

    A unit counts as the mean of the units that are done whose shards have the same prefix. Where there is
    none, each of its items counts as `item`.
    """
    # Units of one prefix are alike, portraits or clips, while two prefixes may differ by orders of magnitude.
    known: dict[str, list[float]] = {}
    for one in done:
        known.setdefault(_prefix(one.name), []).append(value(one))
    total = 0.0
    for unit in left:
        like = known.get(_prefix(unit.name))
        expected = sum(like) / len(like) if like else len(unit.items) * item
        if not expected:
            return 0.0
        total += expected
    return total


def _bytes(one: Done) -> int:
    return one.shard.bytes if one.shard else 0


def _seconds(one: Done) -> float:
    return one.seconds


def _prefix(name: str) -> str:
    return name.partition("-")[0]
