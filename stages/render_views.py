"""Stage render_views: N pseudo views of every frame of every clip, from the frozen Psi_3d."""

from pipeline.config.params import Params
from pipeline.core.paths import CLIP_LABELS, INGEST, MOTION, PERCEPTION, PSI3D, VIEWS, WORST_FRAMES
from pipeline.render.views import render_views
from pipeline.stage import run_stage, write_metrics

READS = (INGEST, CLIP_LABELS, MOTION, PERCEPTION, PSI3D)


def main(params: Params) -> None:
    metrics = render_views(
        params,
        ingested=INGEST,
        labels=CLIP_LABELS,
        motion=MOTION,
        perception=PERCEPTION,
        psi3d=PSI3D,
        out=VIEWS,
        worst=WORST_FRAMES,
    )
    write_metrics("render_views", metrics)


if __name__ == "__main__":
    run_stage("render_views", main)
