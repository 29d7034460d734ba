"""What a stage cost: seconds, peak memory, and how fast its units of work went.

Costs are kept apart from the metrics, which depend on inputs alone.
"""

import json
import threading
import time
from typing import Any, ClassVar

import psutil

from pipeline.core.files import write_json
from pipeline.core.paths import COSTS


class Costs:
    """Seconds and peak memory of a `with` block.

    Memory is the proportional set size of this process and its children, sampled each second. `work` has, for
    each label, what the engine did in it. The one that is open is `Costs.open`.
    """

    open: ClassVar["Costs | None"] = None

    def __init__(self, name: str, scale: str) -> None:
        self.path = COSTS / f"{name}.json"
        self.scale = scale
        self.work: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "Costs":
        Costs.open = self
        self.started = time.monotonic()
        self.peak = 0
        self.done = threading.Event()
        self.sampler = threading.Thread(target=self._sample, daemon=True)
        self.sampler.start()
        return self

    def __exit__(self, *exception: object) -> None:
        Costs.open = None
        self.seconds = time.monotonic() - self.started
        self.done.set()
        self.sampler.join()

    def write(self) -> None:
        """Write the file that `psi4d doctor` and the next run read."""
        record: dict[str, Any] = {
            "scale": self.scale,
            "seconds": round(self.seconds, 1),
            "peak_mb": round(self.peak / 2**20),
        }
        if self.work:
            record["work"] = self.work
        write_json(self.path, record)

    def earlier(self, label: str) -> dict[str, Any]:
        """What the last run at this scale wrote about the work `label`; empty if there was none."""
        try:
            with open(self.path) as file:
                record = json.load(file)
            return record["work"][label] if record["scale"] == self.scale else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _sample(self) -> None:
        # A sample a second costs nothing that one could measure, and misses only peaks that are shorter.
        me = psutil.Process()
        while True:
            now = sum(map(_memory, [me, *me.children(recursive=True)]))
            self.peak = max(self.peak, now)
            if self.done.wait(1.0):
                return


def _memory(process: psutil.Process) -> int:
    # The proportional size counts a page that processes share once, where the resident size counts it for
    # each.
    try:
        return process.memory_full_info().pss
    # The process has ended meanwhile, or the system has no proportional sizes.
    except (psutil.Error, AttributeError):
        return 0
