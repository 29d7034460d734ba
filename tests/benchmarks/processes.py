"""How fast Psi trains in several processes.

    python -m tests.benchmarks.processes PROCESSES [--steps N] [--json FILE]

Run in the folder of a project whose graph has run, on a machine that does nothing else. It makes N steps as
the stage `train` does, with all losses of the run's later part, and prints images a second after the first
quarter of them. `OMP_NUM_THREADS` and `threads` do not matter: each process has one thread.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch

from model.adversary.discriminator import Discriminator
from model.psi.network import Psi
from pipeline.clips.held_out import CachedClips
from pipeline.config.params import Params, load_params
from pipeline.core.files import write_json
from pipeline.core.paths import PERCEPTION, VIEWS
from pipeline.networks.judges import Judges
from pipeline.train.adversary import Adversary
from pipeline.train.distributed import launch, only_first
from pipeline.train.loop import Run, train
from pipeline.train.psi import ReenactmentTask
from pipeline.train.psi_objective import ReenactmentObjective
from pipeline.train.validation import Validation
from tests.benchmarks.training_step import loader


class Timed(ReenactmentTask):
    """Notes when each step begins, and looks at nothing."""

    times: list[float]

    def set_rates(self, step: int) -> None:
        self.times.append(time.monotonic())
        super().set_rates(step)

    def validate(self) -> dict[str, float]:
        return {}

    def preview(self, path: Path) -> None:
        pass


def task(params: Params) -> Timed:
    torch.manual_seed(0)
    section, device = params.train, torch.device("cpu")
    psi = Psi(params.networks.driven_by(section.motion))
    adversary = Adversary(Discriminator(params.networks), section)
    judges = Judges.load(PERCEPTION, device)
    objective = ReenactmentObjective(params, psi, adversary, judges)
    validation = Validation(CachedClips(VIEWS, section.motion, "validation", device), judges)
    made = Timed(
        objective, loader(params, VIEWS), validation, section, {}, section.motion_learning_rate_scale
    )
    made.times = []
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("processes", type=int)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    params = load_params()
    # The dearest steps of a run: whole pictures and the discriminator from the first one on.
    section = params.train.model_copy(update={"adversarial_from": 0, "whole_from": 0})
    microbatches = section.batch // section.microbatch
    # The launcher only waits for the processes that it has started, each of which comes here again.
    if launch(arguments.processes, microbatches):
        return
    timed = task(params.model_copy(update={"train": section}))
    with tempfile.TemporaryDirectory() as folder:
        run = Run("benchmark", Path(folder), arguments.steps, section.batch, microbatches)
        trained = train(timed, run)
        only_first(trained.group)
    # The last time is the beginning of the last step, so that step is not counted.
    first = arguments.steps // 4
    seconds = timed.times[-1] - timed.times[first]
    rate = section.batch * (len(timed.times) - 1 - first) / seconds
    found = {"processes": trained.group.size, "images_per_second": round(rate, 2), "scale": params.scale}
    print(f"{found['processes']} processes: {rate:.2f} images a second at scale {params.scale}")
    if arguments.json:
        write_json(arguments.json, found | {"cores": os.cpu_count(), "torch": torch.__version__})


if __name__ == "__main__":
    main()
