"""Stage evaluate: numbers, pictures, videos and a page about people that no network has seen."""

from pipeline.config.params import Params
from pipeline.core.bad_frames import read_bad_frames
from pipeline.core.paths import (
    BAD_FRAMES,
    CONTACT_SHEET,
    EVALUATE,
    INGEST,
    LABELS,
    PERCEPTION,
    PSI,
    PSI3D,
    TRUTH,
    VIEWS,
)
from pipeline.evaluate.protocol import evaluate
from pipeline.evaluate.report import rounded, write_report
from pipeline.stage import run_stage, write_metrics

# And the folder that pretrain.official of params.yaml names.
READS = (INGEST, TRUTH, LABELS, PERCEPTION, PSI3D, PSI, VIEWS, BAD_FRAMES)


def main(params: Params) -> None:
    result = evaluate(
        params,
        ingest=INGEST,
        labels=LABELS,
        perception=PERCEPTION,
        psi3d=PSI3D,
        views=VIEWS,
        psi=PSI,
        truth=TRUTH,
        bad=read_bad_frames(BAD_FRAMES),
    )
    write_metrics("evaluate", rounded(result.scores))
    write_report(
        result,
        ingest=INGEST,
        views=params.evaluate.novel_views,
        videos=params.evaluate.videos,
        sheet=CONTACT_SHEET,
        out=EVALUATE,
    )
    result.kept.forget()


if __name__ == "__main__":
    run_stage("evaluate", main)
