"""Where the graph keeps what its stages make, below the folder of the project.

dvc.yaml has the same paths. A test holds the two together.
"""

import os
from pathlib import Path

DATA = Path("data")
MARKS = DATA / "code"  # of the stage `code`
INPUTS = DATA / "inputs.jsonl"  # the manifest of the user's files
BAD_FRAMES = DATA / "bad_frames.csv"  # all that people have marked
PUBLISHED = DATA / "published"  # which imported synthesizers trainings begin with or are
PUBLISHED_PSI3D = PUBLISHED / "psi3d.json"
PUBLISHED_PSI = PUBLISHED / "psi.json"
GENERATED = DATA / "generated"
TRUTH = DATA / "truth"
INGEST = DATA / "ingest"
LABELS = DATA / "labels"
CLIP_LABELS = LABELS / "vfhq.parquet"
OFFICIAL = DATA / "official"  # what `psi4d import` makes
PRETRAIN = DATA / "pretrain"
PERCEPTION = PRETRAIN / "perception"
MOTION = PRETRAIN / "motion"
GENHEAD = PRETRAIN / "genhead"
HEADS = DATA / "genhead"
HEAD_SHARDS = HEADS / "shards"
PSI3D = DATA / "psi3d"
VIEWS = DATA / "views"
PSI = DATA / "psi"
EVALUATE = DATA / "evaluate"

MARKED = DATA / "bad_frames"  # the tables of the user

METRICS = Path("metrics")
PLOTS = METRICS / "plots"
CONTACT_SHEET = METRICS / "contact_sheet.jpg"
WORST_FRAMES = METRICS / "worst_frames.jpg"

COSTS = Path(".cache/psi4d/costs")
BOARD = Path(".cache/psi4d/tensorboard")  # event files
MAPPED = Path(".cache/psi4d/mapped")  # arrays that follow from tables, pipeline/engine/mapped.py
CHECKSUMS = Path(".cache/psi4d/checksums.json")


def in_project(path: str | Path) -> Path:
    """Where a path of params.yaml leads: a relative one begins at the project.

    `dvc exp run --temp` and `--queue` work in a copy below .dvc/tmp/exps, which has what git knows alone.
    There the path begins at the project itself, where the user's files are. `~` is the home of the user.
    """
    path = Path(os.path.expanduser(path))
    here = Path.cwd()
    for folder in here.parents:
        if here.is_relative_to(folder / ".dvc/tmp/exps"):
            return folder / path
    return Path(path)
