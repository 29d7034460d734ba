"""Stage render_views: N pseudo views of every frame of every clip, from the frozen Psi_3d."""

from pathlib import Path

from pipeline.files import write_json
from pipeline.params import Params
from pipeline.render_views import render_views
from pipeline.stage import run

DATA = Path("data")


def main(params: Params) -> None:
    metrics = render_views(
        params,
        ingested=DATA / "ingest",
        labels=DATA / "labels/vfhq.parquet",
        motion=DATA / "pretrain/motion",
        perception=DATA / "pretrain/perception",
        psi3d=DATA / "psi3d",
        out=DATA / "views",
        worst=Path("metrics/worst_frames.jpg"),
    )
    write_json("metrics/render_views.json", metrics)


if __name__ == "__main__":
    run("render_views", main)
