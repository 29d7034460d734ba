"""What every stage does around its own work: parameters, threads, errors in one message, and the costs of the run."""

import errno
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence

import psutil
import torch

from model.weights import WeightsError
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.params import load_params

COSTS = ".cache/psi4d/costs"
PLACE_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}


def run(stage: str, function: Callable[..., None], items: Sequence[str] = ()) -> None:
    """Run `function(params)`, or `function(params, item)` for a matrix stage: `items` are its items, the command line names one.

    A UserError or WeightsError ends the process with status 1 and its message alone. Seconds and peak memory go to the folder COSTS.
    """
    os.environ.setdefault("GLOG_minloglevel", "2")  # the C++ log of mediapipe
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)  # torch's own forward-mode derivatives use it
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    arguments = sys.argv[1:]
    try:
        if (items and (len(arguments) != 1 or arguments[0] not in items)) or (arguments and not items):
            raise UserError(f"usage: python -m stages.{stage}" + (f" {'|'.join(items)}" if items else ""))
        params = load_params()
        torch.set_num_threads(params.threads)
        if not torch.cuda.is_available():  # some CUDA kernels have no deterministic twin and would refuse to run
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False
        with Costs() as costs:
            function(params, *arguments)
        write_json(f"{COSTS}/{'_'.join([stage, *arguments])}.json", {"scale": params.scale, **costs.record()})
    except (UserError, WeightsError) as error:
        sys.exit(f"{' '.join([stage, *arguments])}: {error}")
    except OSError as error:
        if error.errno not in PLACE_ERRORS:
            raise
        sys.exit(f"{stage}: {error.strerror}: {error.filename or 'the disk'}. Make it writable or free some space, then run again.")
    except KeyboardInterrupt:
        sys.exit(f"{stage}: stopped. What is finished is kept; run again to go on.")


class Costs:
    """Seconds and peak memory (proportional set size of this process and its children, sampled each second) of a `with` block."""

    def __enter__(self) -> "Costs":
        self.started = time.monotonic()
        self.peak = 0
        self.done = threading.Event()
        self.sampler = threading.Thread(target=self._sample, daemon=True)
        self.sampler.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds = time.monotonic() - self.started
        self.done.set()
        self.sampler.join()

    def record(self) -> dict[str, float]:
        return {"seconds": round(self.seconds, 1), "peak_mb": round(self.peak / 2**20)}

    def _sample(self) -> None:
        me = psutil.Process()
        while True:
            self.peak = max(self.peak, sum(_memory(process) for process in [me, *me.children(recursive=True)]))
            if self.done.wait(1.0):
                return


def _memory(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except (psutil.Error, AttributeError):  # ended meanwhile, or a system without proportional sizes
        return 0


def write_metrics(name: str, metrics: dict) -> None:
    """Write metrics/<name>.json. Rows under the key `history` go to metrics/plots/<name>.json, where every row gets every key (or None)."""
    metrics = dict(metrics)
    if (rows := metrics.pop("history", None)) is not None:
        keys = dict.fromkeys(key for row in rows for key in row)
        write_json(f"metrics/plots/{name}.json", [{key: row.get(key) for key in keys} for row in rows])
    write_json(f"metrics/{name}.json", metrics)
