"""The first losses of every training at smoke scale: `python -m tests.train.losses`.

    python -m tests.train.losses            print how far they are from the committed ones
    python -m tests.train.losses --write    commit to what they are now
    python -m tests.train.losses COMMIT     print how far those of this code are from those of another commit

A change that must not alter numbers leaves them as they are, bit for bit, on the kind of machine that
the file names; elsewhere other kernels round differently.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.config.params import Params
from pipeline.core.files import write_json
from pipeline.pretrain.genhead import pretrain_genhead
from pipeline.pretrain.motion import pretrain_motion
from pipeline.pretrain.perception import pretrain_perception
from tests.support import small_run, training_inputs

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("losses.json")
STEPS = 30
# How near the losses of another kind of machine come, over their size.
ELSEWHERE = 1e-4

Losses = dict[str, list[dict[str, float]]]


def machine() -> str:
    """What decides on the last bits: the processor's instructions and PyTorch."""
    torch_version = torch.__version__.split("+")[0]
    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch_version}"


def losses(folder: Path) -> Losses:
    """The terms of the first STEPS steps of each training, by its name; all is written below `folder`."""
    os.environ["DVC_ROOT"] = str(folder)
    # Sums of several threads are in an order of their own.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    training_inputs.build(folder, processes=1, images=8 * STEPS)
    found = _pretrainings(folder / "pretraining")
    for stage in ("train_psi3d", "train"):
        found[stage] = training_inputs.train_stage(stage, folder)
    return {name: _rows(metrics) for name, metrics in found.items()}


def _pretrainings(folder: Path) -> dict[str, dict[str, Any]]:
    params = _few_steps(small_run.params())
    small_run.build(folder, params)
    (folder / "nothing").mkdir()
    # Without the truth about generated portraits they are taken for real ones.
    inputs = (folder / "ingest", folder / "labels", folder / "nothing")
    return {
        "perception": pretrain_perception(params, *inputs, folder / "perception"),
        "motion": pretrain_motion(params, *inputs, folder / "motion"),
        "genhead": pretrain_genhead(params, *inputs, folder / "genhead"),
    }


def _few_steps(params: Params) -> Params:
    """STEPS steps of two microbatches; a third of the steps is all that face recognition gets."""
    sections = {}
    for name in ("perception", "motion", "genhead"):
        few = {"steps": STEPS, "batch": 4, "microbatch": 2}
        section = getattr(params.pretrain, name)
        sections[name] = section.model_copy(update=few)
    pretrain = params.pretrain.model_copy(update=sections)
    return params.model_copy(update={"pretrain": pretrain})


def _rows(metrics: Mapping[str, Any]) -> list[dict[str, float]]:
    """The rows of a history that are no looks at held-out people: one a step, in so short a run."""
    rows = []
    for row in metrics["history"]:
        # A row of a look at held-out people has names of its own.
        looks = [name for name in row if name.startswith("validation")]
        if not looks:
            rows.append(row)
    return rows


def distance(one: Losses, other: Losses) -> float:
    """The largest difference of two numbers, over their size where that is above 1.

    It is infinite when the rows are not those of the same steps and terms.
    """
    largest = 0.0
    if one.keys() != other.keys():
        return float("inf")
    for name, rows in one.items():
        others = other[name]
        if len(rows) != len(others):
            return float("inf")
        for mine, theirs in zip(rows, others, strict=True):
            if mine.keys() != theirs.keys():
                return float("inf")
            for key, value in mine.items():
                difference = abs(value - theirs[key])
                size = max(1.0, abs(value))
                largest = max(largest, difference / size)
    return largest


def committed() -> tuple[str, Losses]:
    """The kind of machine and the losses of the file."""
    record = json.loads(FILE.read_text())
    return record["machine"], record["losses"]


def of_commit(commit: str) -> Losses:
    """The losses of the code of another commit, computed here."""
    with tempfile.TemporaryDirectory() as folder:
        # No checkout: the working tree stays as it is, and neither caches nor outputs are taken along.
        archive = subprocess.run(
            ["git", "archive", commit],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)
        command = [sys.executable, "-m", "tests.train.losses", "--print"]
        run = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(run.stdout)


def main(argument: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        now = losses(Path(folder))
    if argument == "--print":
        print(json.dumps(now))
    elif argument == "--write":
        write_json(FILE, {"machine": machine(), "losses": now})
    elif argument:
        apart = distance(now, of_commit(argument))
        print(f"this code and {argument}: {apart:.3g} apart")
    else:
        kind, before = committed()
        apart = distance(now, before)
        print(f"{apart:.3g} from the committed losses of {kind}; this is {machine()}")


if __name__ == "__main__":
    main((*sys.argv[1:], "")[0])
