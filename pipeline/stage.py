"""What every stage does around its own work: parameters, threads, errors in one message, costs of the run."""

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
from pipeline.core.curves import write_curves
from pipeline.core.device import set_deterministic
from pipeline.core.errors import UserError, end_process
from pipeline.core.files import write_json
from pipeline.core.paths import METRICS, PLOTS
from pipeline.core.progress import say
from pipeline.engine.code_mark import changed_code
from pipeline.engine.scratch import note_error

PLACE_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}


def run_stage(stage: str, function: Callable[..., None], items: Sequence[str] = ()) -> None:
    """Run `function(params)`, or `function(params, item)` for a stage of many items.

    `items` are those items; the command line names one. A UserError or WeightsError ends the process with
    status 1 and its message alone. Seconds and peak memory go to the folder paths.COSTS.
    """
    _silence()
    # Params are checked before any work, and costs are written only for a stage that came to its end.
    arguments = sys.argv[1:]
    name = "_".join([stage, *arguments])
    try:
        _check_arguments(stage, arguments, items)
        note_error(name, "")
        params = load_params()
        _say_what_changed(stage)
        _set_torch(params.threads)
        with Costs(name, params.scale) as costs:
            function(params, *arguments)
        costs.write()
    except (UserError, WeightsError) as error:
        note_error(name, str(error))
        end_process(" ".join([stage, *arguments]), str(error))
    except OSError as error:
        note_error(name, f"{error.strerror}: {error.filename}")
        if error.errno not in PLACE_ERRORS:
            raise
        place = error.filename or "the disk"
        advice = "Make it writable or free some space, then run again."
        end_process(stage, f"{error.strerror}: {place}. {advice}")
    except KeyboardInterrupt:
        sys.exit(f"{stage}: stopped. What is finished is kept; run again to go on.")


def write_metrics(name: str, metrics: dict) -> None:
    """Write metrics/<name>.json.

    Rows under the key `history` go to metrics/plots/<name>.json instead, where every row has every key (or
    None).
    """
    metrics = dict(metrics)
    rows = metrics.pop("history", None)
    if rows is not None:
        write_curves(PLOTS / f"{name}.json", rows)
    write_json(METRICS / f"{name}.json", metrics)


def _silence() -> None:
    """Keep from people what the C++ of mediapipe and PyTorch's own use of a deprecated function say."""
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


def _check_arguments(stage: str, arguments: list[str], items: Sequence[str]) -> None:
    right = len(arguments) == 1 and arguments[0] in items if items else not arguments
    if not right:
        raise UserError(f"usage: python -m stages.{stage} {'|'.join(items)}".rstrip())


def _set_torch(threads: int) -> None:
    # The number of threads is part of the result: sums of other parts have other last bits.
    torch.set_num_threads(threads)
    # Some CUDA kernels have no deterministic twin and would refuse to run.
    if not torch.cuda.is_available():
        set_deterministic(True)


def _say_what_changed(stage: str) -> None:
    """A line when the mark of the code is old, as it can be when a person starts the stage by hand."""
    changed = changed_code(stage)
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        say(f"{stage}: the mark of its code is old ({changed[0]}{more} changed); `dvc repro code` renews it")
