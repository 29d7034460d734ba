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
    optimisers = [torch.optim.SGD(part.parameters(), lr=0.1, momentum=0.5) for part in (network, other)]
    moves = Moves({"n": network, "o": other}, optimisers)
    assert moves.measure() == {}  # nobody has made a step
    first = network[0].weight.detach().clone()
    network[0](torch.ones(2, 3)).square().sum().backward()
    network[1].weight.grad = torch.zeros(3, 3)
    optimisers[0].step()
    change = (network[0].weight.detach() - first).norm() / max(
        first.norm(), network[0].weight.detach().norm()
    )
    assert moves.measure() == {"n.0": pytest.approx(change.item()), "n.1": 0.0}
    assert moves.table(moves.measure()).split() == ["n.1", "0.0000", "n.0", f"{change:.4f}"]


def test_blocks_of_one_kind_are_one_group():
    network = nn.ModuleDict(
        {"blocks": nn.ModuleList(nn.ModuleDict({"q": nn.Linear(2, 2)}) for _ in range(2))}
    )
    assert list(Moves({"psi": network}, [torch.optim.SGD(network.parameters(), lr=1.0)]).groups) == [
        "psi.blocks.q"
    ]


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
        if is_motion(name):
            assert rates.get(parameter, 0.0) == pytest.approx(motion_scale), name
        else:
            fast = (
                name.endswith(".weight")
                and name.startswith(("decoder.", "superresolution."))
                and "affine" not in name
            )
            assert rates[parameter] == pytest.approx(
                section.equalised_learning_rate_scale if fast else 1.0
            ), name
