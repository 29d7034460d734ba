"""Stage train: Psi, the animatable synthesizer, by cross-view self-reenactment (paper section 4.3)."""

from pipeline.config.params import Params
from pipeline.core.bad_frames import read_bad_frames
from pipeline.core.paths import BAD_FRAMES, PERCEPTION, PLOTS, PSI, PSI3D, PUBLISHED_PSI, VIEWS
from pipeline.stage import run_stage, write_metrics
from pipeline.train.distributed import launch
from pipeline.train.psi import take_psi, train_psi

# And the folder that pretrain.official of params.yaml names.
READS = (VIEWS, PERCEPTION, PSI3D, BAD_FRAMES, PUBLISHED_PSI)


def main(params: Params) -> None:
    section, bad = params.train, read_bad_frames(BAD_FRAMES)
    if section.source == "official":
        write_metrics("train", take_psi(params, VIEWS, PERCEPTION, PSI, bad))
        return
    if launch(params.machine.processes, section.batch // section.microbatch):
        return
    metrics = train_psi(
        params,
        views=VIEWS,
        perception=PERCEPTION,
        psi3d=PSI3D,
        out=PSI,
        curves=PLOTS / "train.json",
        bad=bad,
        published=PUBLISHED_PSI if section.init == "official" else None,
    )
    write_metrics("train", metrics)


if __name__ == "__main__":
    run_stage("train", main)
