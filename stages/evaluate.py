"""Stage evaluate: numbers, pictures, videos and a page about people that no network has seen."""

from pathlib import Path

from pipeline.evaluate import evaluate
from pipeline.params import Params
from pipeline.report import write_pictures
from pipeline.stage import run, write_metrics


def main(params: Params) -> None:
    data, section = Path("data"), params.evaluate
    result = evaluate(
        params,
        ingest=data / "ingest",
        labels=data / "labels",
        perception=data / "pretrain" / "perception",
        psi3d=data / "psi3d",
        views=data / "views",
        psi=data / "psi",
        truth=data / "truth",
        out=data / "evaluate",
    )
    write_metrics("evaluate", result.scores)
    sheet = Path("metrics/contact_sheet.jpg")
    write_pictures(result, views=section.novel_views, videos=section.videos, sheet=sheet, out=data / "evaluate")


if __name__ == "__main__":
    run("evaluate", main)
