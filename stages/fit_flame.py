"""Stage fit_flame: shape, expression, pose and camera of every face, from its landmarks.

Its items are ffhq (portraits) and vfhq (clips).
"""

from pipeline.config.params import Params
from pipeline.core.paths import INGEST, LABELS
from pipeline.fit_flame.table import ITEMS, fit_table
from pipeline.stage import run_stage, write_metrics
from pipeline.store.tables import write_table

# A set each, so that a new clip fits no portrait again.
READS = {"ffhq": (INGEST / "portraits.parquet",), "vfhq": (INGEST / "frames.parquet",)}


def main(params: Params, item: str) -> None:
    table, metrics = fit_table(params, item, INGEST)
    write_table(LABELS / f"{item}.parquet", table)
    write_metrics(f"fit_flame_{item}", metrics)


if __name__ == "__main__":
    run_stage("fit_flame", main, ITEMS)
