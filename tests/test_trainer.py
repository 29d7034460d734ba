"""The training loop: an interrupted run ends with the bits of an undisturbed one."""

import copy

import pytest
import torch
from torch import nn

from pipeline.ahead import ahead, behind
from pipeline.counter import rng, torch_rng
from pipeline.errors import UserError
from pipeline.trainer import Training, set_rates, update


class Stop(Exception):
    pass


def run(folder, stop_at=None, steps=80, device="cpu"):
    torch.manual_seed(0)
    network = nn.Linear(4, 2).to(device)
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    training = Training("test", folder, steps, 4, {"n": network}, {"o": optimiser}, {"n": average}, half_life=40, checkpoint_every=20)
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


def test_a_killed_run_goes_on_and_ends_in_the_same_bits(tmp_path):
    whole = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "cut", stop_at=57)
    assert (tmp_path / "cut" / "checkpoint.json").exists()
    resumed = run(tmp_path / "cut")
    assert same(whole[0], resumed[0]) and same(whole[1], resumed[1]) and whole[2] == resumed[2]


def test_a_damaged_checkpoint_is_not_used(tmp_path):
    with pytest.raises(Stop):
        run(tmp_path, stop_at=57)
    path = tmp_path / "checkpoint.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert same(run(tmp_path)[0], run(tmp_path / "other")[0])


def test_the_average_has_its_half_life(tmp_path):
    network, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    nn.init.ones_(average.weight)
    training = Training("test", tmp_path, 10, 100, {"n": network}, {}, {"n": average}, half_life=1000)
    training._average(images=10**9)  # far beyond the ramp-up
    assert average.weight.item() == pytest.approx(0.5**0.1)


def test_a_value_that_is_not_finite_stops_with_its_name(tmp_path):
    training = Training("train_psi3d", tmp_path, 4, 1, {}, {})
    with pytest.raises(UserError, match="train_psi3d: 'lpips' is nan around step 1"):
        training.run(lambda i: None, lambda i, batch: {"lpips": float("nan")})


def test_gradients_that_are_not_finite_do_no_harm():
    weight = nn.Parameter(torch.ones(1))
    update(torch.optim.SGD([weight], lr=1.0), (weight * float("nan")).sum())
    assert weight.item() == 1.0


def test_batches_come_in_order_one_ahead():
    assert list(ahead(lambda i: i * i, 2, 6)) == [(2, 4), (3, 9), (4, 16), (5, 25)]


def test_results_come_in_order_one_behind():
    made = []
    results = behind(lambda i: i * i, (made.append(i) or i for i in range(4)))
    assert next(results) == 0 and made == [0, 1]
    assert list(results) == [1, 4, 9] and not list(behind(str, []))
    with pytest.raises(ZeroDivisionError):
        list(behind(lambda i: 1 // i, [1, 0, 1]))
    assert list(ahead(lambda i: i, 3, 3)) == []


def test_counters_depend_on_names_alone():
    assert rng(0, "clip", 3, "view", 1).random() == rng(0, "clip", 3, "view", 1).random()
    assert rng(0, "a", 12).random() != rng(0, "a1", 2).random()


def test_rates_rise_and_fall() -> None:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    rates = []
    for images in (0, 4, 9, 50, 100, 120):
        set_rates(optimiser, images, 9, 100)
        rates.append(optimiser.param_groups[0]["lr"])
    assert rates[0] == 2.0 * 0.1 and rates[1] < rates[2] < 2.0 and abs(rates[3] - 1.0) < 1e-12 and rates[4] == rates[5] == 0.0
    set_rates(optimiser, 120, 0, 0)
    assert optimiser.param_groups[0]["lr"] == 2.0
