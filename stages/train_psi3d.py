"""Stage train_psi3d: Psi_3d, the static 3D head synthesizer, from GenHead's images (paper section 4.2)."""

from pipeline.config.params import Params
from pipeline.core.paths import (
    CLIP_LABELS,
    GENHEAD,
    HEAD_SHARDS,
    INGEST,
    PERCEPTION,
    PLOTS,
    PSI3D,
    PUBLISHED_PSI3D,
)
from pipeline.stage import run_stage, write_metrics
from pipeline.train.distributed import launch
from pipeline.train.psi3d import take_psi3d, train_psi3d

# And the folder that pretrain.official of params.yaml names.
READS = (HEAD_SHARDS, PERCEPTION, GENHEAD, INGEST, CLIP_LABELS, PUBLISHED_PSI3D)


def main(params: Params) -> None:
    section = params.train_psi3d
    if section.source == "official":
        write_metrics("train_psi3d", take_psi3d(params, PERCEPTION, INGEST, CLIP_LABELS, PSI3D))
        return
    if launch(params.machine.processes, section.batch // section.microbatch):
        return
    metrics = train_psi3d(
        params,
        heads=HEAD_SHARDS,
        perception=PERCEPTION,
        genhead=GENHEAD,
        ingest=INGEST,
        labels=CLIP_LABELS,
        out=PSI3D,
        curves=PLOTS / "train_psi3d.json",
        published=PUBLISHED_PSI3D if section.init == "official" else None,
    )
    write_metrics("train_psi3d", metrics)


if __name__ == "__main__":
    run_stage("train_psi3d", main)
