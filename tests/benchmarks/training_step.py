"""Steps of the trainer of Psi for the benchmarks: objective, optimisers, batches, and no bookkeeping."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from model.adversary.discriminator import Discriminator
from model.psi.network import Psi
from pipeline.config.params import Params
from pipeline.geometry.neck import Neck
from pipeline.networks.judges import Judges
from pipeline.train.adversary import Adversary
from pipeline.train.loop import clean_gradients
from pipeline.train.psi_objective import ReenactmentObjective
from pipeline.train.rates import synthesizer_optimiser
from pipeline.train.view_batches import FrameBatch, PseudoMultiView


def loader(params: Params, views: Path) -> PseudoMultiView:
    """The batches that the stage `train` draws."""
    section = params.train
    shares = {"substitute_p": section.substitute_p, "substitute_q": section.substitute_q}
    return PseudoMultiView(views, seed=params.seed, clips=0, motion=section.motion, **shares)


def training_step(params: Params, perception: Path) -> Callable[[int, FrameBatch], None]:
    """One step of training on a batch, with all losses of the run's later part."""
    torch.manual_seed(0)
    section = params.train.model_copy(update={"adversarial_from": 0})
    params = params.model_copy(update={"train": section})
    psi = Psi(params.networks)
    adversary = Adversary(Discriminator(params.networks), section)
    optimiser = synthesizer_optimiser(psi, section, section.motion_learning_rate_scale)
    objective = ReenactmentObjective(params, psi, adversary, Judges.load(perception), Neck())

    def step(i: int, batch: FrameBatch) -> None:
        # All optimisers step at the end, as in the stage: the discriminator judges with its old weights.
        optimisers = {"psi": optimiser, "discriminator": adversary.optimiser}
        learning = set()
        for loss in objective(i, 0, batch):
            loss.total.backward()
            learning.add(loss.optimiser)
        for name in learning:
            clean_gradients(optimisers[name])
            optimisers[name].step()
            optimisers[name].zero_grad()

    return step


def cpu_seconds(
    work: Callable[[int], object],
    times: int,
    warm: int = 2,
) -> float:
    """The median CPU time of `work(i)` in this process, seconds.

    Set torch to one thread, or threads that wait count, too.
    """
    # The median, as a garbage collection or a page fault hits some of them.
    taken = []
    for i in range(warm + times):
        began = time.process_time()
        work(i)
        taken.append(time.process_time() - began)
    return sorted(taken[warm:])[times // 2]
