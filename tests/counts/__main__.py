"""Every stage at the published counts: `python -m tests.counts [--folder FOLDER] [--over N] [STAGE ...]`.

Each is started, does its first work, is killed and resumed. Prints a table of seconds and memory; status 1
when a stage fails, does its work again, or needs more memory than it may. `--over 100` takes a hundredth of
the counts: a look at whether all of it works.
"""

import argparse
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

from pipeline.config.params import check_params
from pipeline.config.scales import scale_data
from tests.counts.data_set import DataSet
from tests.counts.stages import Run, Stage

MOST = 8 * 2**30  # bytes
UNIT = 32  # portraits
STAGES = {
    "ingest": Stage("ingest", "ingest"),
    "fit_flame ffhq": Stage("fit_flame ffhq", "fit_flame_ffhq"),
    "fit_flame vfhq": Stage("fit_flame vfhq", "fit_flame_vfhq"),
    "pretrain perception": Stage("pretrain perception"),
    "pretrain motion": Stage("pretrain motion"),
    "pretrain genhead": Stage("pretrain genhead"),
    "render_genhead": Stage("render_genhead", "render_genhead"),
    "train_psi3d": Stage("train_psi3d"),
    "render_views": Stage("render_views", "render_views"),
    "train": Stage("train"),
    "evaluate": Stage("evaluate", line=re.compile(r"evaluate: real-self: ([\d,]+) of")),
}
# What is no count of the paper: sizes of networks, and how long a training is at least.
SMALL = ("networks", "pretrain", "train_psi3d", "train")
DIVIDED = (
    ("ingest", "identities"),
    ("ingest", "train_clips"),
    ("ingest", "validation_clips"),
    ("ingest", "test_clips"),
    ("render_genhead", "heads"),
)


def counts(over: int = 1) -> dict:
    """The values of scale paper with the networks of scale smoke, and the data divided by `over`."""
    data, small = scale_data("paper"), scale_data("smoke")
    for name in SMALL:
        data[name] = small[name]
    # Long enough to be killed amid their steps.
    published = scale_data("paper")
    for name in ("train_psi3d", "train"):
        data[name]["images"] = published[name]["images"]
    for name in ("perception", "motion", "genhead"):
        data["pretrain"][name]["steps"] = published["pretrain"][name]["steps"]
    data["scale"] = "counts"
    data["flame"] = small["flame"]
    data["machine"] = small["machine"] | {"workers": 2, "processes": 2}
    data["ingest"]["min_face"] = small["ingest"]["min_face"]
    data["render_genhead"]["points"] = small["render_genhead"]["points"]
    for section, name in DIVIDED:
        data[section][name] //= over
    return data


def rehearse(stage: Stage, folder: Path) -> tuple[list[Run], str]:
    """Two runs of a stage, and what is wrong with them."""
    runs = [stage.run(folder), stage.run(folder)]
    for run in runs:
        if not run.first:
            return runs, f"no work: {' '.join(run.said[-3:])}"
        if run.peak > MOST:
            return runs, "memory"
    if stage.line.groups:
        matches = [match for run in runs for match in map(stage.line.search, run.said) if match]
        steps = [int(match[1].replace(",", "")) for match in matches]
        if steps != sorted(set(steps)):
            return runs, f"steps again: {steps}"
    return runs, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--folder", help="where the data set is made, or lies; without it, it is removed")
    parser.add_argument("--over", type=int, default=1, help="divides the counts")
    asked = parser.parse_args()
    folder = Path(asked.folder or tempfile.mkdtemp(prefix="psi4d-counts-")).resolve()
    make(folder, asked.over)
    print("| stage | first work, s | of a core | after a kill, s | of a core | memory, GB | |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    wrong = 0
    for name in asked.stages or STAGES:
        runs, problem = rehearse(STAGES[name], folder)
        wrong += bool(problem)
        seconds = " | ".join(f"{run.first:.0f} | {run.work:.0f}" for run in runs)
        peak = max(run.peak for run in runs) / 1e9
        print(f"| `{name}` | {seconds} | {peak:.1f} | {problem} |", flush=True)
    if not asked.folder:
        shutil.rmtree(folder)
    return int(wrong > 0)


def make(folder: Path, over: int) -> None:
    """The data set in `folder`, unless it is there."""
    if (folder / "made").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    data = counts(over)
    started = time.monotonic()
    DataSet(folder, check_params(data, "counts")).make()
    # Portraits are detected one by one: smaller units are done sooner, and there are more of them.
    data["ingest"]["shard_size"] = UNIT
    with open(folder / "params.yaml", "w") as file:
        YAML().dump(data, file)
    (folder / "made").touch()
    print(f"the data set took {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
