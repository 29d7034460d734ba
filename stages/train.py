"""Stage train: Psi, the animatable synthesizer, by cross-view self-reenactment (paper section 4.3)."""

from pathlib import Path

from pipeline.config.params import Params
from pipeline.stage import run_stage, write_metrics
from pipeline.train.psi import train_psi

VIEWS, PERCEPTION, PSI3D = Path("data/views"), Path("data/pretrain/perception"), Path("data/psi3d")
READS = (VIEWS, PERCEPTION, PSI3D)


def main(params: Params) -> None:
    metrics = train_psi(params, views=VIEWS, perception=PERCEPTION, psi3d=PSI3D, out=Path("data/psi"))
    write_metrics("train", metrics)


if __name__ == "__main__":
    run_stage("train", main)
