"""Stage train_psi3d: Psi_3d, the static 3D head synthesizer, from GenHead's images (paper section 4.2)."""

from pathlib import Path

from pipeline.config.params import Params
from pipeline.stage import run_stage, write_metrics
from pipeline.train.psi3d import train_psi3d

HEADS = Path("data/genhead/shards")
PERCEPTION, GENHEAD = Path("data/pretrain/perception"), Path("data/pretrain/genhead")
INGEST, LABELS = Path("data/ingest"), Path("data/labels/vfhq.parquet")
READS = (HEADS, PERCEPTION, GENHEAD, INGEST, LABELS)


def main(params: Params) -> None:
    metrics = train_psi3d(
        params,
        heads=HEADS,
        perception=PERCEPTION,
        genhead=GENHEAD,
        ingest=INGEST,
        labels=LABELS,
        out=Path("data/psi3d"),
    )
    write_metrics("train_psi3d", metrics)


if __name__ == "__main__":
    run_stage("train_psi3d", main)
