"""Stage render_genhead: multi-view images of heads that GenHead invents."""

from pipeline.config.params import Params
from pipeline.core.paths import GENHEAD, HEAD_SHARDS, LABELS
from pipeline.render.genhead import render_genhead
from pipeline.stage import run_stage, write_metrics

READS = (LABELS, GENHEAD)


def main(params: Params) -> None:
    # Nothing reads heads where Psi_3d is the published one, and they are terabytes.
    if params.train_psi3d.source == "official":
        HEAD_SHARDS.mkdir(parents=True, exist_ok=True)
        (HEAD_SHARDS / "none.txt").write_text("train_psi3d.source is official: no heads are needed.\n")
        write_metrics("render_genhead", {"heads": 0, "images": 0})
        return
    metrics = render_genhead(params, labels=LABELS, genhead=GENHEAD, out=HEAD_SHARDS)
    write_metrics("render_genhead", metrics)


if __name__ == "__main__":
    run_stage("render_genhead", main)
