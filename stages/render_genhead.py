"""Stage render_genhead: multi-view images of heads that GenHead invents."""

from pathlib import Path

from pipeline.files import write_json
from pipeline.params import Params
from pipeline.render_genhead import render_genhead
from pipeline.stage import run

DATA = Path("data")


def main(params: Params) -> None:
    metrics = render_genhead(params, labels=DATA / "labels", genhead=DATA / "pretrain/genhead", out=DATA / "genhead/shards")
    write_json("metrics/render_genhead.json", metrics)


if __name__ == "__main__":
    run("render_genhead", main)
