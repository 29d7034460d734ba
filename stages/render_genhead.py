"""Stage render_genhead: multi-view images of heads that GenHead invents."""

from pipeline.config.params import Params
from pipeline.core.paths import GENHEAD, HEAD_SHARDS, LABELS
from pipeline.render.genhead import render_genhead
from pipeline.stage import run_stage, write_metrics

READS = (LABELS, GENHEAD)


def main(params: Params) -> None:
    metrics = render_genhead(params, labels=LABELS, genhead=GENHEAD, out=HEAD_SHARDS)
    write_metrics("render_genhead", metrics)


if __name__ == "__main__":
    run_stage("render_genhead", main)
