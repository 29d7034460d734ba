"""Where the graph keeps what its stages make, below the folder of the project.

dvc.yaml has the same paths. A test holds the two together.
"""

from pathlib import Path

DATA = Path("data")
MARKS = DATA / "code"  # of the stage `code`
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

METRICS = Path("metrics")
PLOTS = METRICS / "plots"
CONTACT_SHEET = METRICS / "contact_sheet.jpg"
WORST_FRAMES = METRICS / "worst_frames.jpg"

COSTS = Path(".cache/psi4d/costs")
