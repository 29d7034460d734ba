"""Stage render_views: N pseudo views of every frame of every clip, from the frozen Psi_3d."""

from pathlib import Path

from pipeline.config.params import Params
from pipeline.core.files import write_json
from pipeline.render.views import render_views
from pipeline.stage import run_stage

INGEST, LABELS = Path("data/ingest"), Path("data/labels/vfhq.parquet")
MOTION, PERCEPTION = Path("data/pretrain/motion"), Path("data/pretrain/perception")
PSI3D = Path("data/psi3d")
READS = (INGEST, LABELS, MOTION, PERCEPTION, PSI3D)


def main(params: Params) -> None:
    metrics = render_views(
        params,
        ingested=INGEST,
        labels=LABELS,
        motion=MOTION,
        perception=PERCEPTION,
        psi3d=PSI3D,
        out=Path("data/views"),
        worst=Path("metrics/worst_frames.jpg"),
    )
    write_json("metrics/render_views.json", metrics)


if __name__ == "__main__":
    run_stage("render_views", main)
