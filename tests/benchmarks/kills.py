"""Twenty runs with a kill each: `python -m tests.benchmarks.kills [RUNS]`.

Says what each did. Status 1 when a byte is wrong or something was repeated.
"""

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
        seconds = time.monotonic() - started
        same = "the same" if result.shards == wanted else "DIFFERENT"
        when = f"killed when {result.finished} of {len(killing.UNITS)} units were finished"
        what = f"{when}, {len(result.repeated)} repeated, bytes {same}, {seconds:.0f} s"
        print(f"seed {seed:2}  {workers} workers  {victim:10}  {what}", flush=True)
sys.exit(bad > 0)
