"""Stage evaluate: numbers, pictures, videos and a page about people that no network has seen."""

from pathlib import Path

from pipeline.config.params import Params
from pipeline.evaluate.protocol import evaluate
from pipeline.evaluate.report import write_pictures
from pipeline.stage import run_stage, write_metrics

INGEST, TRUTH, LABELS = Path("data/ingest"), Path("data/truth"), Path("data/labels")
PERCEPTION, PSI3D, PSI = Path("data/pretrain/perception"), Path("data/psi3d"), Path("data/psi")
VIEWS = Path("data/views")
READS = (INGEST, TRUTH, LABELS, PERCEPTION, PSI3D, PSI, VIEWS)


def main(params: Params) -> None:
    section, out = params.evaluate, Path("data/evaluate")
    result = evaluate(
        params,
        ingest=INGEST,
        labels=LABELS,
        perception=PERCEPTION,
        psi3d=PSI3D,
        views=VIEWS,
        psi=PSI,
        truth=TRUTH,
        out=out,
    )
    write_metrics("evaluate", result.scores)
    sheet = Path("metrics/contact_sheet.jpg")
    write_pictures(result, views=section.novel_views, videos=section.videos, sheet=sheet, out=out)


if __name__ == "__main__":
    run_stage("evaluate", main)
