"""A miniature run that is evaluated, for the tests of the evaluation and of its report."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from model.judges.identity import IdentityNet
from model.judges.regressor import Regressor
from model.judges.trunk import Trunk
from model.sizes import IdentitySizes
from pipeline.config.params import Params
from pipeline.evaluate.protocol import Evaluation, evaluate
from pipeline.evaluate.report import write_report
from pipeline.networks.judges import Judges
from pipeline.networks.weights import save_weights
from pipeline.pretrain.onnx_export import export_identity
from tests.support import small_run

INPUTS = ("ingest", "labels", "perception", "psi3d", "views", "psi", "truth")


@dataclass(frozen=True)
class World:
    """The folders of a run and what was measured in it."""

    folder: Path
    params: Params
    evaluation: Evaluation
    name: str = "out"

    @property
    def out(self) -> Path:
        return self.folder / self.name

    def report(self, views: int = 1, videos: int = 1) -> None:
        """Write all that the stage writes, the contact sheet too, to `out`."""
        sheet = self.out / "sheet.jpg"
        write_report(
            self.evaluation,
            ingest=self.folder / "ingest",
            views=views,
            videos=videos,
            sheet=sheet,
            out=self.out,
        )


def build(folder: Path, truth: bool = True) -> World:
    params = small_run.params()
    small_run.build(folder, params, truth=truth)
    judges(folder / "perception", params.networks.identity)
    return World(folder, params, run(folder, params))


def places(folder: Path) -> dict[str, Path]:
    """The folders that `evaluate` reads, by the names of its arguments."""
    return {name: folder / name for name in INPUTS}


def run(folder: Path, params: Params, root: Path | None = None) -> Evaluation:
    """Measure; what is kept meanwhile lies below `root`, or where no other run finds it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root or tempfile.mkdtemp(dir=folder)))
        return evaluate(params, **places(folder))


def judges(folder: Path, sizes: IdentitySizes) -> None:
    """Write judging networks as they are initialised."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {
            "identity": IdentityNet(sizes).eval(),
            "trunk": Trunk(),
            "regressor": Regressor(),
        }
    for name, network in networks.items():
        save_weights(folder / f"{name}.safetensors", network.state_dict(), {"sizes": vars(sizes)})
    export_identity(networks["identity"], folder / "identity.onnx")


def small_judges() -> Judges:
    """Judging networks as they are initialised, for pictures of 64 pixels and more."""
    return Judges(IdentityNet(IdentitySizes((1, 1), 4, 8)), Trunk(), Regressor(8))
