"""How far layers move, and how fast they are let."""

import pytest
import torch
from torch import nn

from model.psi.network import Psi, is_motion
from pipeline.config.scales import scale_params
from pipeline.train.moves import Moves
from pipeline.train.rates import synthesizer_optimiser


def test_a_layer_that_gets_no_gradient_has_not_moved():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    other = nn.Linear(3, 3)
    optimisers = []
    for part in (network, other):
        optimisers.append(torch.optim.SGD(part.parameters(), lr=0.1, momentum=0.5))
    moves = Moves({"n": network, "o": other}, optimisers)
    # No optimiser has made a step.
    assert moves.measure() == {}
    learning, still = network
    first = learning.weight.detach().clone()
    output = learning(torch.ones(2, 3))
    output.square().sum().backward()
    still.weight.grad = torch.zeros(3, 3)
    optimisers[0].step()
    last = learning.weight.detach()
    way = (last - first).norm()
    change = way / max(first.norm(), last.norm())
    found = moves.measure()
    assert found == {"n.0": pytest.approx(change.item()), "n.1": 0.0}
    assert moves.still(found) == ["n.1"]
    assert moves.still({"c": 0.0005, "b": 0.0, "a": 0.002}) == ["b", "c"]


def test_blocks_of_one_kind_are_one_group():
    blocks = nn.ModuleList()
    for _ in range(2):
        blocks.append(nn.ModuleDict({"q": nn.Linear(2, 2)}))
    network = nn.ModuleDict({"blocks": blocks})
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0)
    moves = Moves({"psi": network}, [optimiser])
    assert list(moves.groups) == ["psi.blocks.q"]


@pytest.mark.parametrize("motion_scale", [0.0, 2.5])
def test_who_learns_how_fast(motion_scale):
    params = scale_params("smoke")
    psi = Psi(params.networks)
    section = params.train
    optimiser = synthesizer_optimiser(psi, section, motion_scale)
    rates = {
        parameter: group["lr"] / section.learning_rate
        for group in optimiser.param_groups
        for parameter in group["params"]
    }
    assert {group["eps"] for group in optimiser.param_groups} == {section.adam_eps}
    for name, parameter in psi.named_parameters():
        expected = 1.0
        # Weights that a layer multiplies by a constant of its own move by less of what they do.
        equalised = name.endswith(".weight") and "affine" not in name
        if equalised and name.startswith(("decoder.", "superresolution.")):
            expected = section.equalised_learning_rate_scale
        if is_motion(name):
            expected = motion_scale
        # Layers with a scale of zero are in no group.
        found = rates.get(parameter, 0.0)
        assert found == pytest.approx(expected), name
