"""What every stage does around its own work: parameters, threads, errors in one message, and the costs of the run."""

import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence

import torch

from model.weights import WeightsError
from pipeline.config.params import load_params
from pipeline.core.costs import Costs
from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.core.progress import say
from pipeline.engine.code_mark import changed_code

PLACE_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}


def run_stage(stage: str, function: Callable[..., None], items: Sequence[str] = ()) -> None:
    """Run `function(params)`, or `function(params, item)` for a matrix stage: `items` are its items, the command line names one.

    A UserError or WeightsError ends the process with status 1 and its message alone. Seconds and peak memory go to the folder costs.COSTS.
    """
    os.environ.setdefault("GLOG_minloglevel", "2")  # the C++ log of mediapipe
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    warnings.filterwarnings(
        "ignore", "`torch.jit.script` is deprecated", FutureWarning
    )  # torch's own forward-mode derivatives use it
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    arguments = sys.argv[1:]
    try:
        if (items and (len(arguments) != 1 or arguments[0] not in items)) or (arguments and not items):
            raise UserError(f"usage: python -m stages.{stage}" + (f" {'|'.join(items)}" if items else ""))
        params = load_params()
        _say_what_changed(stage)
        torch.set_num_threads(params.threads)
        if (
            not torch.cuda.is_available()
        ):  # some CUDA kernels have no deterministic twin and would refuse to run
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # pyrefly: ignore[missing-attribute]
        with Costs("_".join([stage, *arguments]), params.scale) as costs:
            function(params, *arguments)
        costs.write()
    except (UserError, WeightsError) as error:
        sys.exit(f"{' '.join([stage, *arguments])}: {error}")
    except OSError as error:
        if error.errno not in PLACE_ERRORS:
            raise
        sys.exit(
            f"{stage}: {error.strerror}: {error.filename or 'the disk'}. Make it writable or free some space, then run again."
        )
    except KeyboardInterrupt:
        sys.exit(f"{stage}: stopped. What is finished is kept; run again to go on.")


def _say_what_changed(stage: str) -> None:
    """A line when the mark of the code is old, as it can be when somebody starts the stage by hand."""
    if changed := changed_code(stage):
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        say(f"{stage}: the mark of its code is old ({changed[0]}{more} changed); `dvc repro code` renews it")


def write_metrics(name: str, metrics: dict) -> None:
    """Write metrics/<name>.json. Rows under the key `history` go to metrics/plots/<name>.json, where every row gets every key (or None)."""
    metrics = dict(metrics)
    if (rows := metrics.pop("history", None)) is not None:
        keys = dict.fromkeys(key for row in rows for key in row)
        write_json(f"metrics/plots/{name}.json", [{key: row.get(key) for key in keys} for row in rows])
    write_json(f"metrics/{name}.json", metrics)
