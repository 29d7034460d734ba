"""Stage fit_flame: shape, expression, pose and camera of every face, from its landmarks.

Items of the matrix: ffhq (portraits) and vfhq (clips).
"""

from pathlib import Path

from pipeline.files import write_table
from pipeline.label_table import SOURCES, fit_table
from pipeline.params import Params
from pipeline.stage import run, write_metrics

INGEST = Path("data/ingest")
READS = (INGEST,)


def main(params: Params, item: str) -> None:
    table, metrics = fit_table(params, item, INGEST)
    write_table(f"data/labels/{item}.parquet", table)
    write_metrics(f"fit_flame_{item}", metrics)


if __name__ == "__main__":
    run("fit_flame", main, tuple(SOURCES))
