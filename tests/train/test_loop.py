"""The training loop: an interrupted run ends with the bits of an undisturbed one."""

import pytest
import torch
from torch import nn

from pipeline.core.errors import UserError
from pipeline.core.prefetch import prefetch, write_behind
from pipeline.core.seeds import rng
from pipeline.train.loop import TrainingLoop, update
from pipeline.train.schedule import set_rates
from tests.support.short_training import Stop, run, same


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
    training = TrainingLoop("test", tmp_path, 10, 100, {"n": network}, {}, {"n": average}, half_life=1000)
    training._average(images=10**9)  # far beyond the ramp-up
    assert average.weight.item() == pytest.approx(0.5**0.1)


def test_a_value_that_is_not_finite_stops_with_its_name(tmp_path):
    training = TrainingLoop("train_psi3d", tmp_path, 4, 1, {}, {})
    with pytest.raises(UserError, match="train_psi3d: 'lpips' is nan around step 1"):
        training.run(lambda i: None, lambda i, batch: {"lpips": float("nan")})


def test_gradients_that_are_not_finite_do_no_harm():
    weight = nn.Parameter(torch.ones(1))
    update(torch.optim.SGD([weight], lr=1.0), (weight * float("nan")).sum())
    assert weight.item() == 1.0


def test_batches_come_in_order_one_ahead():
    assert list(prefetch(lambda i: i * i, 2, 6)) == [(2, 4), (3, 9), (4, 16), (5, 25)]


def test_results_come_in_order_one_behind():
    made = []
    results = write_behind(lambda i: i * i, (made.append(i) or i for i in range(4)))
    assert next(results) == 0 and made == [0, 1]
    assert list(results) == [1, 4, 9] and not list(write_behind(str, []))
    with pytest.raises(ZeroDivisionError):
        list(write_behind(lambda i: 1 // i, [1, 0, 1]))
    assert list(prefetch(lambda i: i, 3, 3)) == []


def test_counters_depend_on_names_alone():
    assert rng(0, "clip", 3, "view", 1).random() == rng(0, "clip", 3, "view", 1).random()
    assert rng(0, "a", 12).random() != rng(0, "a1", 2).random()


def test_rates_rise_and_fall() -> None:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    rates = []
    for images in (0, 4, 9, 50, 100, 120):
        set_rates(optimiser, images, 9, 100)
        rates.append(optimiser.param_groups[0]["lr"])
    assert (
        rates[0] == 2.0 * 0.1
        and rates[1] < rates[2] < 2.0
        and abs(rates[3] - 1.0) < 1e-12
        and rates[4] == rates[5] == 0.0
    )
    set_rates(optimiser, 120, 0, 0)
    assert optimiser.param_groups[0]["lr"] == 2.0
