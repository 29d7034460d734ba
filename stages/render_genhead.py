"""Stage render_genhead: multi-view images of heads that GenHead invents."""

from pathlib import Path

from pipeline.config.params import Params
from pipeline.core.files import write_json
from pipeline.render.genhead import render_genhead
from pipeline.stage import run_stage

LABELS, GENHEAD = Path("data/labels"), Path("data/pretrain/genhead")
READS = (LABELS, GENHEAD)


def main(params: Params) -> None:
    metrics = render_genhead(params, labels=LABELS, genhead=GENHEAD, out=Path("data/genhead/shards"))
    write_json("metrics/render_genhead.json", metrics)


if __name__ == "__main__":
    run_stage("render_genhead", main)
