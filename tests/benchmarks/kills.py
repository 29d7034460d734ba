"""Twenty runs with a kill each: `python -m tests.benchmarks.kills [RUNS]`. Says what each did; status 1 when a byte or a repetition is wrong."""

import sys
import tempfile
import time
from pathlib import Path

from tests.support import killing

runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
bad = 0
with tempfile.TemporaryDirectory() as folder:
    killing.drive(Path(folder, "undisturbed"), 0)
    wanted = killing.shards(Path(folder, "undisturbed"))
    for seed in range(runs):
        victim, workers = killing.VICTIMS[seed % 3], 1 + seed % 2
        started = time.monotonic()
        result = killing.kill_one(Path(folder, str(seed)), victim, seed, workers)
        good = result.killed and result.shards == wanted and not result.repeated
        bad += not good
        print(
            f"seed {seed:2}  {workers} workers  {victim:10}  killed when {result.finished} of {len(killing.UNITS)} units were finished, "
            f"{len(result.repeated)} repeated, bytes {'the same' if result.shards == wanted else 'DIFFERENT'}, {time.monotonic() - started:.0f} s",
            flush=True,
        )
sys.exit(bad > 0)
