"""Stage train_psi3d: Psi_3d, the static 3D head synthesizer, from GenHead's images (paper section 4.2)."""

from pathlib import Path

from pipeline.params import Params
from pipeline.stage import run, write_metrics
from pipeline.train_psi3d import train_psi3d


def main(params: Params) -> None:
    metrics = train_psi3d(
        params,
        heads=Path("data/genhead/shards"),
        perception=Path("data/pretrain/perception"),
        genhead=Path("data/pretrain/genhead"),
        ingest=Path("data/ingest"),
        labels=Path("data/labels/vfhq.parquet"),
        out=Path("data/psi3d"),
    )
    write_metrics("train_psi3d", metrics)


if __name__ == "__main__":
    run("train_psi3d", main)
