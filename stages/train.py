"""Stage train: Psi, the animatable synthesizer, by cross-view self-reenactment (paper section 4.3)."""

from pipeline.config.params import Params
from pipeline.core.bad_frames import read_bad_frames
from pipeline.core.paths import BAD_FRAMES, PERCEPTION, PLOTS, PSI, PSI3D, VIEWS
from pipeline.stage import run_stage, write_metrics
from pipeline.train.distributed import launch
from pipeline.train.psi import train_psi

READS = (VIEWS, PERCEPTION, PSI3D, BAD_FRAMES)


def main(params: Params) -> None:
    section = params.train
    if launch(params.machine.processes, section.batch // section.microbatch):
        return
    metrics = train_psi(
        params,
        views=VIEWS,
        perception=PERCEPTION,
        psi3d=PSI3D,
        out=PSI,
        curves=PLOTS / "train.json",
        bad=read_bad_frames(BAD_FRAMES),
    )
    write_metrics("train", metrics)


if __name__ == "__main__":
    run_stage("train", main)
