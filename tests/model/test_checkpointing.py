"""Activation checkpointing changes no bit, and with it the published sizes fit into a GPU of 24 GB.

The latter is by calculation (tests/support/footprint.py).
"""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from model.adversary.discriminator import Discriminator
from model.checkpointing import recompute, recompute_distance
from model.judges.identity import IdentityNet
from model.judges.regressor import Regressor
from model.judges.trunk import PublishedTrunk, Trunk
from model.psi.network import Psi
from model.sizes import Sizes
from pipeline.config.params import Params
from pipeline.config.scales import scale_params
from pipeline.core.device import to_device
from pipeline.geometry.camera import look_at
from pipeline.geometry.neck import Neck
from pipeline.networks.judges import Judges
from pipeline.train.adversary import R1_EVERY, Adversary
from pipeline.train.precision import use_bfloat16
from pipeline.train.psi3d_objective import StaticObjective
from pipeline.train.psi_objective import ReenactmentObjective
from pipeline.train.synthetic_batches import HeadBatch
from pipeline.train.view_batches import FrameBatch
from tests.support.footprint import Footprint, size
from tests.support.sizes import SMOKE_SIZES

GPU, KERNELS = 24e9, 4e9  # bytes of the GPU; of those, left for what the calculation does not see
STAGES = ("train_psi3d", "train")


def every_loss(scale: str) -> Params:
    own = scale_params(scale)
    # The memory is that of float32, the most there can be: tensors without numbers know no autocast.
    every = {"adversarial_from": 0, "batch": 1, "precision": "float32"}
    static = every | {"identity_from": 0, "rays_first": 0}
    moving = every | {"whole_from": 0}
    sections = {
        "train_psi3d": own.train_psi3d.model_copy(update=static),
        "train": own.train.model_copy(update=moving),
    }
    return own.model_copy(update=sections)


def random_batch(
    stage: str,
    sizes: Sizes,
    count: int,
) -> HeadBatch | FrameBatch:
    """Noise as images, `count` of them; the first of every two targets is a real frame."""
    generator = torch.Generator().manual_seed(0)
    image = (sizes.image, sizes.image)
    rays = (sizes.rays, sizes.rays)

    def draw(*shape: int, low: float = -1.0) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (1.0 - low) + low

    centre = np.zeros(3)
    views = [look_at(0.2 * i, 0.1, 4.2, centre) for i in range(count)]
    cameras = torch.from_numpy(np.stack(views))
    face = draw(70, 2, low=0.3)
    if stage == "train_psi3d":
        pictures = (
            draw(3, *image),
            cameras,
            draw(3, *image),
            draw(1, *rays, low=0.0),
            4.2 + draw(1, *rays),
            draw(3, *rays),
            draw(3, *image),
        )
        return HeadBatch(
            *pictures,
            cameras[:, None],
            face,
            draw(4000, 3) / 2,
            draw(4000, sizes.plane_channels),
        )
    motions = draw(sizes.motion.dims), draw(sizes.motion.dims)
    pictures = draw(3, *image), draw(1, *image, low=0.0), draw(3, *image)
    real = 1.0 - torch.arange(count) % 2
    reals = torch.full((count,), int(real.sum()))
    faces = face, draw(70, 2, low=0.3), draw(70, 2, low=0.3)
    targets = (*pictures, cameras[:, None], *faces, real, reals)
    no_labels = torch.empty(2, count, 0)
    return FrameBatch(draw(3, *image), cameras, *motions, *targets, *no_labels)


def trained(stage: str, psi: Psi) -> list[torch.nn.Parameter]:
    return list(psi.base_parameters() if stage == "train_psi3d" else psi.parameters())


def objective(
    stage: str,
    params: Params,
    psi: Psi,
    adversary: Adversary,
    judges: Judges,
) -> Callable:
    if stage == "train_psi3d":
        return StaticObjective(params, psi, adversary, judges)
    return ReenactmentObjective(params, psi, adversary, judges, Neck())


@pytest.fixture
def deterministic():
    """As every stage runs: without it threads may add up gradients in any order."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", STAGES)
def test_losses_and_gradients_keep_their_bits(stage: str, precision: str) -> None:
    params = every_loss("smoke")
    sizes = params.networks
    torch.manual_seed(0)
    psi = Psi(sizes)
    adversary = Adversary(Discriminator(sizes), getattr(params, stage))
    judges = Judges(IdentityNet(sizes.identity), Trunk(), Regressor())
    saving = copy.deepcopy(psi)
    recompute(saving)
    assert saving.state_dict().keys() == psi.state_dict().keys()
    batch = random_batch(stage, sizes, 2)
    # Only the bits can tell that nothing was drawn or added up in another order.
    scalars = []
    for network in (psi, saving):
        own = copy.deepcopy(judges)
        if network is saving:
            recompute_distance(own.trunk)
        if precision == "bfloat16":
            use_bfloat16(network, own)
        losses = objective(stage, params, network, adversary, own)
        loss = next(losses(0, 0, batch))
        scalars.append(dict(loss.terms) | {"loss": loss.total.detach()})
        loss.total.backward()
    plain, saved = scalars
    for name, value in plain.items():
        assert torch.equal(value, saved[name]), name
    pairs = zip(trained(stage, psi), trained(stage, saving), strict=True)
    for one, other in pairs:
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)


@pytest.fixture(scope="module")
def calculated() -> dict[str, dict[str, float]]:
    """`step_memory` of each training stage, with checkpointing."""
    return {stage: step_memory(stage, saving=True) for stage in STAGES}


def step_memory(
    stage: str,
    saving: bool,
    forward_only: bool = False,
    count: int = 1,
) -> dict[str, float]:
    """Bytes of a training step of `count` images at paper scale.

    Those of its parts, and the most while the synthesizer and while the discriminator learns.
    `forward_only` stops behind the first forward pass and knows the activations alone.
    """
    params = every_loss("paper")
    sizes = params.networks
    with Footprint() as memory:
        with torch.device("meta"):
            psi = Psi(sizes)
            discriminator = Discriminator(sizes)
            judges = Judges(IdentityNet(sizes.identity), PublishedTrunk(), Regressor())
            judges.to("meta")
        average = copy.deepcopy(psi).requires_grad_(False)
        if saving:
            recompute(psi)
            recompute_distance(judges.trunk)
        # The fused Adam of an adversary refuses tensors without numbers; a plain one has the same moments.
        adversary = Adversary(Discriminator(SMOKE_SIZES), getattr(params, stage))
        adversary.network = discriminator
        adversary.optimiser = torch.optim.Adam(discriminator.parameters(), lr=1e-4)
        optimiser = torch.optim.Adam(trained(stage, psi), lr=1e-4)
        run = objective(stage, params, psi, adversary, judges)
        batch = to_device(random_batch(stage, sizes, count), "meta")
        if stage == "train":
            # These stay on the CPU, as they decide which terms a sample meets.
            on_cpu = {
                "real": torch.ones(count),
                "reals": torch.full((count,), count),
            }
            batch = FrameBatch(**vars(batch) | on_cpu)
        facts = {}
        # Gradients and moments exist from the second step on.
        for i in (0, R1_EVERY):
            start = memory.peak = memory.bytes
            losses = run(i, 0, batch)
            loss = next(losses)
            facts["activations"] = memory.bytes - start
            if forward_only:
                return facts
            optimiser.zero_grad()
            loss.total.backward()
            facts["synthesizer"] = memory.peak
            memory.peak = memory.bytes
            adversary.optimiser.zero_grad()
            for loss in losses:
                loss.total.backward()
            facts["discriminator"] = memory.peak
            # The gradients are not cleaned: that looks at numbers, which these tensors lack, and takes
            # one number a parameter.
            for each in (optimiser, adversary.optimiser):
                each.step()
            del loss, losses
    learning = [*psi.parameters(), *discriminator.parameters()]
    gradients = [parameter.grad for parameter in learning if parameter.grad is not None]
    moments = []
    for each in (optimiser, adversary.optimiser):
        for state in each.state.values():
            moments += state.values()
    return facts | {
        "psi": size([*psi.parameters(), *psi.buffers()]),
        "average": size([*average.parameters(), *average.buffers()]),
        "others": size([*discriminator.parameters(), *judges.parameters()]),
        "moments": size(moments),
        "gradients": size(gradients),
    }


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_of_the_published_sizes_fits_into_24_gb(stage: str, calculated: dict) -> None:
    # The discriminator learns behind the synthesizer: what that kept is free by then.
    facts = calculated[stage]
    assert max(facts["synthesizer"], facts["discriminator"]) < GPU - KERNELS
    without = step_memory(stage, saving=False, forward_only=True)
    assert facts["activations"] < 0.3 * without["activations"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_microbatch_of_four_fits_into_16_gb(stage: str) -> None:
    facts = step_memory(stage, saving=True, count=4)
    assert max(facts["synthesizer"], facts["discriminator"]) < 13e9
    # R1 meets two images at a time, so that it is not the most any more.
    assert facts["discriminator"] < facts["synthesizer"]


@pytest.mark.slow
def test_the_parts_of_the_memory_are_what_the_counts_say(calculated: dict) -> None:
    psi, motion = 224_766_123, 101_931_008
    with torch.device("meta"):
        network = Discriminator(Sizes())
    discriminator = sum(parameter.numel() for parameter in network.parameters())
    for stage, learnt in (("train_psi3d", psi - motion), ("train", psi)):
        facts = calculated[stage]
        assert facts["psi"] == facts["average"] >= 4 * psi
        # Adam keeps two moments of each number.
        size_of_learnt = 4 * (learnt + discriminator)
        assert facts["moments"] == pytest.approx(2 * size_of_learnt, rel=1e-3)
        assert facts["gradients"] == pytest.approx(size_of_learnt, rel=1e-3)


def test_the_calculation_counts_what_lives() -> None:
    with Footprint() as memory:
        kept = torch.zeros(256, device="meta", requires_grad=True)
        assert memory.bytes == 1024
        passing = kept.view(16, 16).exp()  # kept for the backward pass
        product = (passing * 2.0).sum()
        del passing
        assert memory.bytes == 1024 + 1024 + 512
        assert memory.peak == 3 * 1024 + 512
        product.backward()
        assert memory.bytes == 1024 + 512 + 1024  # its gradient


# The table of the README.
if __name__ == "__main__":
    for stage in STAGES:
        for count, saving in ((1, False), (1, True), (4, True)):
            facts = step_memory(stage, saving, count=count)
            print(
                stage,
                count,
                "with" if saving else "without",
                {name: round(value / 1e9, 2) for name, value in facts.items()},
            )
