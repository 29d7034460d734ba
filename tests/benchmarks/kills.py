"""Twenty runs with a kill each: `python -m tests.benchmarks.kills [RUNS]`.

Says what each did; status 1 when a byte or a repetition is wrong.
"""

import sys
import tempfile
import time
from pathlib import Path

from tests.support import killing

runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
bad = 0
with tempfile.TemporaryDirectory() as folder:
    # What all runs are compared with, made in this process, which nothing kills.
    killing.drive(Path(folder, "undisturbed"), 0)
    wanted = killing.shards(Path(folder, "undisturbed"))
    for seed in range(runs):
        victim = killing.VICTIMS[seed % 3]
        workers = 1 + seed % 2
        started = time.monotonic()
        result = killing.kill_one(Path(folder, str(seed)), victim, seed, workers)
        seconds = time.monotonic() - started
        same = result.shards == wanted
        bad += not (result.killed and same and not result.repeated)
        what = f"seed {seed:2}  {workers} workers  {victim:10}"
        when = f"killed when {result.finished} of {len(killing.UNITS)} units were finished"
        bytes_are = "the same" if same else "DIFFERENT"
        print(
            f"{what}  {when}, {len(result.repeated)} repeated, bytes {bytes_are}, {seconds:.0f} s", flush=True
        )
sys.exit(bad > 0)
