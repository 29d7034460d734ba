"""`psi4d bench --train`: images a second of the trainings of Psi_3d and Psi on this machine, in one run.

Each case is a process of its own, or several, with the inputs of the project in this folder. Its steps are
those of the later part of a run, sparse and whole ones in turn, without looks at held-out people. The
plain loop is the trainer that the project began with: one process, two threads, a batch of 4.

    python -m pipeline.bench.training CASE FILE     times one case, as the command does
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from model.adversary.discriminator import Discriminator
from model.psi.network import Psi
from pipeline.bench.clock import counted
from pipeline.bench.floor import measure_rates
from pipeline.bench.machine import machine_facts
from pipeline.clips.held_out import CachedClips
from pipeline.config.params import Params, Training, load_params
from pipeline.core.device import choose_device, to_device
from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.core.paths import HEAD_SHARDS, PERCEPTION, VIEWS
from pipeline.networks.judges import Judges
from pipeline.train.adversary import Adversary
from pipeline.train.distributed import launch, only_first
from pipeline.train.loop import LARGEST_GRADIENT, Run, train, update_averages
from pipeline.train.psi import neck_in_training
from pipeline.train.psi3d_objective import StaticObjective
from pipeline.train.psi_objective import ReenactmentObjective
from pipeline.train.rates import BETAS
from pipeline.train.synthesizer import SynthesizerTask
from pipeline.train.synthetic_batches import SyntheticHeads
from pipeline.train.task import Task
from pipeline.train.validation import Validation
from pipeline.train.view_batches import PseudoMultiView

# Rounds of sparse and whole steps; the first ones choose kernels and get memory.
ROUNDS, WARM = 10, 2
PLAIN_BATCH, PLAIN_THREADS = 4, 2
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
NEEDED = {HEAD_SHARDS: "render_genhead", VIEWS: "render_views", PERCEPTION: "pretrain"}


@dataclass(frozen=True)
class TrainingCase:
    """What is timed. `processes` is 0 for the plain loop."""

    network: str  # psi3d or psi
    precision: str
    processes: int

    def __str__(self) -> str:
        return f"{self.network}-{self.precision}-{self.processes}"

    @classmethod
    def named(cls, name: str) -> "TrainingCase":
        """The case whose string is `name`."""
        network, precision, processes = name.split("-")
        return cls(network, precision, int(processes))


class Stopwatch(Task[Any]):
    """A training that notes when its steps begin, and looks at nothing."""

    def __init__(self, task: Task[Any]) -> None:
        self.task, self.times = task, []
        self.networks, self.optimisers, self.averages = task.networks, task.optimisers, task.averages

    def batch(self, step: int, microbatch: int) -> Any:
        return self.task.batch(step, microbatch)

    def set_rates(self, step: int) -> None:
        self.times.append(time.monotonic())
        self.task.set_rates(step)

    def losses(self, step: int, microbatch: int, batch: Any) -> Iterator[Any]:
        return self.task.losses(step, microbatch, batch)


def cases() -> list[TrainingCase]:
    """Each network plain, and in float32 and bfloat16 by one and by two processes."""
    found = []
    for network in ("psi3d", "psi"):
        found.append(TrainingCase(network, "float32", 0))
        for precision in ("float32", "bfloat16"):
            found += [TrainingCase(network, precision, processes) for processes in (1, 2)]
    return found


def bench_training() -> Iterator[str | dict[str, Any]]:
    """Lines to be shown, and at last all numbers.

    Raises UserError where the graph has not run so far that there are inputs.
    """
    for folder, stage in NEEDED.items():
        if not folder.is_dir():
            raise UserError(f"bench --train: {folder} is not there. Run `dvc repro {stage}` first.")
    yield "images a second; the share is of what the operations take at the highest measured rate"
    results = []
    for case in cases():
        result = _in_its_own_process(case)
        results.append(result)
        yield line(result)
    yield {"benchmark": "training", "machine": machine_facts(), "results": results}


def line(result: dict[str, Any]) -> str:
    """One case as people read it."""
    joined = {0: "the plain loop", 1: "1 process"}
    processes = joined.get(result["processes"], f"{result['processes']} processes")
    share = f", {result['share']:.2f} of the floor" if result["share"] else ""
    name = f"{result['network']} {result['precision']}, {processes}"
    return f"  {name:32} {result['images_per_second']:8.1f}{share}"


def measure(case: TrainingCase, params: Params) -> dict[str, Any] | None:
    """The numbers of one case; None in a process that only waits for those that it launched."""
    section = _section(case, params)
    microbatches = section.batch // section.microbatch
    if case.processes and launch(case.processes, microbatches):
        return None
    task = Stopwatch(_task(case, params, section))
    steps = ROUNDS * section.whole_every
    with tempfile.TemporaryDirectory() as folder:
        run = Run("bench", Path(folder), steps, section.batch, microbatches, half_life=section.ema_half_life)
        if case.processes:
            trained = train(task, run)
            only_first(trained.group)
            joined = trained.group.size
        else:
            _plain_loop(task, run)
            joined = 0
    # The last step has no successor that would tell its end, so that the first of a round stands for it.
    first, last = WARM * section.whole_every, (ROUNDS - 1) * section.whole_every
    rate = section.batch * (last - first) / (task.times[last] - task.times[first])
    share = _share_of_floor(task, section, params, rate / joined) if joined else None
    found = {"images_per_second": round(rate, 2), "share": share, "scale": params.scale}
    return asdict(case) | {"processes": joined} | found


def _in_its_own_process(case: TrainingCase) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", __spec__.name, str(case), str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"bench --train: {case} failed: {done.stderr.strip()[-2000:]}")
        return json.loads(out.read_text())


def _section(case: TrainingCase, params: Params) -> Training:
    """The params of the training, as they are in its later part."""
    section = params.train_psi3d if case.network == "psi3d" else params.train
    late = {"whole_from": 0, "precision": case.precision}
    if section.adversarial_from < section.images:
        late["adversarial_from"] = 0
    if case.processes == 0:
        late |= {"batch": PLAIN_BATCH, "microbatch": PLAIN_BATCH}
    return section.model_copy(update=late)


def _task(case: TrainingCase, params: Params, section: Training) -> SynthesizerTask[Any]:
    """The training with networks of random weights: they take as long as trained ones."""
    torch.manual_seed(0)
    device, sizes = choose_device(params.machine.device), params.networks
    is_static = case.network == "psi3d"
    psi = Psi(sizes if is_static else sizes.driven_by(params.train.motion)).to(device)
    adversary = Adversary(Discriminator(sizes).to(device), section)
    judges = Judges.load(PERCEPTION, device)
    changed = params.model_copy(update={"train_psi3d" if is_static else "train": section})
    if is_static:
        objective = StaticObjective(changed, psi, adversary, judges)
        data = SyntheticHeads(HEAD_SHARDS, params.seed)
    else:
        shares = {"substitute_p": params.train.substitute_p, "substitute_q": params.train.substitute_q}
        kinds = {"motion": params.train.motion, "neck": params.train.neck}
        data = PseudoMultiView(VIEWS, seed=params.seed, clips=0, **kinds, **shares)
        objective = ReenactmentObjective(changed, psi, adversary, judges, neck_in_training(params, device))
    validation = Validation(CachedClips(VIEWS, params.train.motion, "validation", device), judges)
    motion_scale = 0.0 if is_static else params.train.motion_learning_rate_scale
    return SynthesizerTask(objective, data, validation, section, {}, motion_scale)


def _plain_loop(task: Stopwatch, run: Run) -> None:
    """The steps of `run` as the project's first trainer made them."""
    torch.set_num_threads(PLAIN_THREADS)
    optimisers = {name: _plain_adam(optimiser) for name, optimiser in task.optimisers.items()}
    for step in range(run.steps):
        task.set_rates(step)
        learning = set()
        for loss in task.losses(step, 0, to_device(task.batch(step, 0), run.device)):
            loss.total.backward()
            learning.add(loss.optimiser)
        for name in learning:
            _clean_each(optimisers[name])
            optimisers[name].step()
            optimisers[name].zero_grad()
        update_averages(task, run, (step + 1) * run.batch)


def _clean_each(optimiser: torch.optim.Optimizer) -> None:
    for group in optimiser.param_groups:
        gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
        for gradient in gradients:
            torch.nan_to_num_(gradient, 0.0, LARGEST_GRADIENT, -LARGEST_GRADIENT)


def _plain_adam(optimiser: torch.optim.Optimizer) -> torch.optim.Adam:
    groups = [{"params": group["params"], "lr": group["lr"]} for group in optimiser.param_groups]
    return torch.optim.Adam(groups, betas=BETAS, eps=optimiser.param_groups[0]["eps"])


def _share_of_floor(task: Stopwatch, section: Training, params: Params, rate: float) -> float | None:
    """The share of the floor that `rate` images a second of one process are.

    None on a GPU, whose rates are not measured.
    """
    device = choose_device(params.machine.device)
    if device.type != "cpu":
        return None
    # PyTorch's counter cannot look through R1, the gradient of a gradient, which every 16th round has.
    round_without_r1 = range(section.whole_every, 2 * section.whole_every)
    with counted() as counter:
        for step in round_without_r1:
            for loss in task.losses(step, 0, task.batch(step, 0)):
                loss.total.backward()
    an_image = counter.get_total_flops() / (section.whole_every * section.microbatch)
    ceiling = measure_rates(params.networks, DTYPES[section.precision])["wall"].ceiling * 1e9
    return round(rate * an_image / ceiling, 3)


def main() -> None:
    name, out = sys.argv[1:]
    found = measure(TrainingCase.named(name), load_params())
    if found:
        write_json(Path(out), found)


if __name__ == "__main__":
    main()
