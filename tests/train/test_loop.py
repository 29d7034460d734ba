"""The training loop: an interrupted run ends with the bits of an undisturbed one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.core.errors import UserError
from pipeline.core.prefetch import prefetch, write_behind
from pipeline.core.seeds import rng
from pipeline.train.loop import Means, Run, clean_gradients, forget, train, update_averages
from pipeline.train.schedule import half_cosine, set_rates
from pipeline.train.task import Loss
from tests.support.short_training import ShortTask, Stop, run, same


def test_a_killed_run_goes_on_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "cut", stop_at=57)
    assert (tmp_path / "cut" / "checkpoint.json").exists()
    resumed = run(tmp_path / "cut")
    assert same(whole[0], resumed[0])
    assert same(whole[1], resumed[1])
    assert whole[2] == resumed[2]


def test_a_damaged_checkpoint_is_not_used(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, stop_at=57)
    path = tmp_path / "checkpoint.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert same(run(tmp_path)[0], run(tmp_path / "other")[0])


def test_a_forgotten_run_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, stop_at=57)
    forget(Run("test", tmp_path, steps=80, batch=4))
    assert list(tmp_path.iterdir()) == []


def test_the_average_has_its_half_life(tmp_path: Path) -> None:
    task = ShortTask()
    nn.init.zeros_(task.network.weight)
    nn.init.ones_(task.average.weight)
    # So many images that the half-life is no longer a shorter one.
    update_averages(
        task,
        Run(
            "test",
            tmp_path,
            steps=10,
            batch=100,
            half_life=1000,
        ),
        images=10**9,
    )
    assert task.average.weight.unique().item() == pytest.approx(0.5**0.1)


class Diverging(ShortTask):
    """Its loss is no number."""

    def losses(self, step: int, batch: Tensor) -> Iterator[Loss]:
        loss = self.network(batch).mean() * torch.nan
        yield Loss("o", loss, {"lpips": loss.detach()})


def test_a_value_that_is_not_finite_stops_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train_psi3d: 'lpips' is nan around step 1"):
        train(
            Diverging(),
            Run(
                "train_psi3d",
                tmp_path,
                steps=4,
                batch=1,
            ),
        )


def test_gradients_that_are_not_finite_do_no_harm() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.tensor([torch.nan, torch.inf, 0.5])
    clean_gradients(optimiser)
    assert weight.grad.tolist() == [0.0, 1e5, 0.5]


def test_means_begin_anew_when_they_are_taken() -> None:
    means = Means()
    for value in (1.0, 2.0):
        means.add({"l1": torch.tensor(value)})
    means.add({"lpips": torch.tensor(3.0)})
    assert means.take() == {"l1": 1.5, "lpips": 3.0}
    assert means.take() == {}


def test_batches_come_in_order_one_ahead() -> None:
    assert list(prefetch(lambda i: i * i, 2, 6)) == [(2, 4), (3, 9), (4, 16), (5, 25)]
    assert list(prefetch(lambda i: i, 3, 3)) == []


def test_results_come_in_order_one_behind() -> None:
    made = []
    results = write_behind(lambda i: i * i, (made.append(i) or i for i in range(4)))
    assert next(results) == 0
    assert made == [0, 1]
    assert list(results) == [1, 4, 9]
    assert not list(write_behind(str, []))
    with pytest.raises(ZeroDivisionError):
        list(write_behind(lambda i: 1 // i, [1, 0, 1]))


def test_counters_depend_on_names_alone() -> None:
    assert rng(0, "clip", 3, "view", 1).random() == rng(0, "clip", 3, "view", 1).random()
    assert rng(0, "a", 12).random() != rng(0, "a1", 2).random()


def test_rates_rise_and_fall() -> None:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    rates = {}
    for images in (0, 4, 9, 50, 100, 120):
        set_rates(optimiser, images, warmup=9, decay_until=100)
        rates[images] = optimiser.param_groups[0]["lr"]
    assert rates[0] == 2.0 * 0.1
    assert rates[4] < rates[9] < 2.0
    assert rates[50] == pytest.approx(1.0)
    assert rates[100] == rates[120] == 0.0
    set_rates(optimiser, 120, warmup=0, decay_until=0)
    assert optimiser.param_groups[0]["lr"] == 2.0


def test_half_a_cosine_falls_from_one_to_nothing_and_stays_there() -> None:
    assert [half_cosine(share) for share in (0.0, 0.5, 1.0, 2.0)] == pytest.approx([1.0, 0.5, 0.0, 0.0])
