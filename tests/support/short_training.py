"""A training of a second, which can be stopped."""

import copy

import torch
from torch import nn

from pipeline.core.seeds import torch_rng
from pipeline.train.loop import TrainingLoop, update
from pipeline.train.schedule import set_rates


class Stop(Exception):
    pass


def run(folder, stop_at=None, steps=80, device="cpu"):
    torch.manual_seed(0)
    network = nn.Linear(4, 2).to(device)
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    training = TrainingLoop(
        "test",
        folder,
        steps,
        4,
        {"n": network},
        {"o": optimiser},
        {"n": average},
        half_life=40,
        checkpoint_every=20,
    )
    training.device = device

    def step(i, batch):
        if i == stop_at:
            raise Stop
        loss = (network(batch) - batch[:, :2]).square().mean()
        set_rates(optimiser, i * 4, 40, 0)
        update(optimiser, loss)
        return {"loss": loss.detach()}

    history = training.run(lambda i: torch.rand(4, 4, generator=torch_rng(1, i)), step)
    return network.state_dict(), average.state_dict(), history


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
