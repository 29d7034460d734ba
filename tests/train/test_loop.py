"""The training loop: an interrupted run ends with the bits of an undisturbed one."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.core.errors import UserError
from pipeline.core.prefetch import prefetch, write_behind
from pipeline.core.seeds import rng
from pipeline.train.checkpoint import Checkpoints, Progress
from pipeline.train.distributed import STOPPED, Group
from pipeline.train.loop import Run, clean_gradients, finish, forget, train, update_averages
from pipeline.train.schedule import half_cosine, set_rates
from pipeline.train.task import Loss
from pipeline.train.tree import TreeSum, add_processes, add_right
from tests.support.short_training import ShortTask, Stop, run, run_of, same


def test_a_killed_run_goes_on_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "cut", stop_at=57)
    found = (tmp_path / "cut").glob("checkpoint-*")
    names = sorted(path.name for path in found)
    assert names == [
        "checkpoint-000000020.json",
        "checkpoint-000000020.safetensors",
        "checkpoint-000000040.json",
        "checkpoint-000000040.safetensors",
    ]
    resumed = run(tmp_path / "cut")
    assert same(whole[0], resumed[0])
    assert same(whole[1], resumed[1])
    assert whole[2] == resumed[2]


def test_of_damaged_checkpoints_the_one_before_is_taken(tmp_path: Path, capsys) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "cut", stop_at=57)
    path = tmp_path / "cut" / "checkpoint-000000040.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    resumed = run(tmp_path / "cut")
    assert same(whole[0], resumed[0])
    assert whole[2] == resumed[2]
    assert "checkpoint-000000040.safetensors is damaged" in capsys.readouterr().err
    last = Checkpoints(tmp_path / "cut", Group()).load(ShortTask(), 80)
    assert last.done == 80


def test_the_last_three_checkpoints_are_kept(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, stop_at=101, steps=200)
    kept = sorted(path.stem for path in tmp_path.glob("*.safetensors"))
    assert kept == [
        "checkpoint-000000060",
        "checkpoint-000000080",
        "checkpoint-000000100",
    ]


def test_a_longer_run_goes_on_from_the_end_of_a_finished_one(tmp_path: Path, capsys) -> None:
    whole = run(tmp_path / "whole", steps=110)
    run(tmp_path / "grown", steps=70)
    finish(run_of(tmp_path / "grown", steps=70))
    kept = [path.name for path in (tmp_path / "grown").glob("*.safetensors")]
    assert kept == ["checkpoint-000000070.safetensors"]
    grown = run(tmp_path / "grown", steps=110)
    assert "goes on from the end of a shorter one, of 70 steps" in capsys.readouterr().err
    assert same(whole[0], grown[0])
    assert same(whole[1], grown[1])
    # Its curve has the points of the shorter run, whose distance was another one.
    assert grown[2][-1]["step"] == 110
    assert {row["step"] for row in grown[2] if row["step"] <= 70} == set(range(1, 71))


def test_a_finished_run_of_the_same_or_of_fewer_steps_begins_anew(tmp_path: Path) -> None:
    first = run(tmp_path / "folder", steps=40)
    # Until its results stand where they belong it is at its end.
    assert Checkpoints(tmp_path / "folder", Group()).load(ShortTask(), 40).done == 40
    finish(run_of(tmp_path / "folder", steps=40))
    for steps in (40, 30):
        assert Checkpoints(tmp_path / "folder", Group()).load(ShortTask(), steps).done == 0
    with pytest.raises(Stop):
        run(tmp_path / "folder", stop_at=30, steps=40)
    again = run(tmp_path / "folder", steps=40)
    assert same(first[0], again[0])
    assert first[2] == again[2]


def test_snapshots_are_numbered_by_images(tmp_path: Path) -> None:
    task = Kept()
    train(task, replace(run_of(tmp_path), snapshot_every=30))
    assert task.kept == {"snapshot-000000240.safetensors": 240, "snapshot-000000480.safetensors": 480}


class Kept(ShortTask):
    """Notes its snapshots."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, int] = {}

    def snapshot(self, path: Path, images: int) -> None:
        self.kept[path.name] = images


def test_processes_with_different_weights_are_told(tmp_path: Path) -> None:
    class Apart(Group):
        """Two processes, the other one with weights of its own."""

        def gather(self, value):
            return [value, "0123456789ab"]

    checkpoints = Checkpoints(tmp_path, Apart(0, 2))
    with pytest.raises(UserError, match=r"different weights after step 7: [0-9a-f]{12} 0123456789ab\."):
        checkpoints.save(ShortTask(), Progress(done=7))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_a_step_and_a_checkpoint(tmp_path: Path, number: int, capsys) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(SystemExit) as stopped:
        train(Signalled(number), run_of(tmp_path / "cut"))
    # The number by which a scheduler knows that the run wants to be started again.
    assert STOPPED == 75
    assert stopped.value.code == STOPPED
    assert "test: stopped after step 31 of 80. Run again to go on" in capsys.readouterr().err
    resumed = run(tmp_path / "cut")
    assert same(whole[0], resumed[0])
    assert whole[2] == resumed[2]


class Signalled(ShortTask):
    """Gets a signal in the middle of its 31st step."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def losses(self, step: int, microbatch: int, batch: Tensor) -> Iterator[Loss]:
        if (step, microbatch) == (30, 1):
            os.kill(os.getpid(), self.number)
        return super().losses(step, microbatch, batch)


def test_halves_of_the_tree_are_added_as_the_tree_adds_them() -> None:
    """Whatever order a process chose, it would show: one number swallows the other."""
    tree = TreeSum()
    for value in (1e8, 1.0, -1e8, 1.0):
        tree.add([torch.tensor([value]), None])
    # 1e8 + 1 is 1e8 in float32, and so is the other half.
    total, nothing = tree.total()
    assert total.item() == 0.0
    assert nothing is None
    halves = []
    for value in (1e8, -1e8):
        larger = torch.tensor([value])
        (half,) = add_right([larger], [torch.tensor([1.0])])
        halves.append(half)
    together = add_processes(halves)
    assert torch.equal(together, total)


def test_a_forgotten_run_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, stop_at=57)
    forget(Run("test", tmp_path, steps=80, batch=4))
    assert not list(tmp_path.glob("checkpoint-*"))


def test_the_average_has_its_half_life(tmp_path: Path) -> None:
    task = ShortTask()
    for parameter in task.network.parameters():
        nn.init.zeros_(parameter)
    for parameter in task.average.parameters():
        nn.init.ones_(parameter)
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
    for parameter in task.average.parameters():
        # A batch of 100 is a tenth of it.
        value = parameter.unique().item()
        assert value == pytest.approx(0.5**0.1)


class Diverging(ShortTask):
    """Its loss is no number."""

    def losses(self, step: int, microbatch: int, batch: Tensor) -> Iterator[Loss]:
        factor = torch.nan if step == 30 else 0.0
        loss = factor * self.network(batch).mean()
        yield Loss("o", loss, {"lpips": loss.detach()})


def test_a_value_that_is_not_finite_stops_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="test: 'lpips' is nan at step 31"):
        train(Diverging(), run_of(tmp_path))
    # The checkpoint before it is still there.
    last = Checkpoints(tmp_path, Group()).load(ShortTask(), 80)
    assert last.done == 20


def test_gradients_that_are_not_finite_do_no_harm() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    broken = [torch.nan, torch.inf, 0.5]
    weight.grad = torch.tensor(broken)
    assert clean_gradients(optimiser) == 1
    assert weight.grad.tolist() == [0.0, 1e5, 0.5]
    # Their squares are infinite, they are not.
    large = torch.tensor([3e38, -3e38, 0.5])
    weight.grad = large.clone()
    assert clean_gradients(optimiser) == 0
    assert torch.equal(weight.grad, large)


def test_batches_come_in_order_one_ahead() -> None:
    results = prefetch(lambda i: i * i, 2, 6)
    assert list(results) == [(2, 4), (3, 9), (4, 16), (5, 25)]
    nothing = prefetch(lambda i: i, 3, 3)
    assert list(nothing) == []


def test_results_come_in_order_one_behind() -> None:
    made: list[int] = []

    def counting() -> Iterator[int]:
        for i in range(4):
            made.append(i)
            yield i

    results = write_behind(lambda i: i * i, counting())
    assert next(results) == 0
    # The next one is made while the caller has the first.
    assert made == [0, 1]
    assert list(results) == [1, 4, 9]
    nothing = write_behind(str, [])
    assert list(nothing) == []
    # What fails in the thread is raised where the results are read.
    failing = write_behind(lambda i: 1 // i, [1, 0, 1])
    with pytest.raises(ZeroDivisionError):
        list(failing)


def test_counters_depend_on_names_alone() -> None:
    one = rng(0, "clip", 3, "view", 1)
    again = rng(0, "clip", 3, "view", 1)
    assert one.random() == again.random()
    # Names and numbers do not run into each other.
    twelve = rng(0, "a", 12)
    two = rng(0, "a1", 2)
    assert twelve.random() != two.random()


def test_rates_rise_and_fall() -> None:
    weight = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.SGD([weight], lr=2.0)
    rates = {}
    for images in (0, 4, 9, 50, 100, 120):
        set_rates(optimiser, images, warmup=9, decay_until=100)
        rates[images] = optimiser.param_groups[0]["lr"]
    # Warming up begins with a tenth: a rate of zero would be a step for nothing.
    assert rates[0] == 2.0 * 0.1
    assert rates[4] < rates[9] < 2.0
    assert rates[50] == pytest.approx(1.0)
    assert rates[100] == rates[120] == 0.0
    # Zero is for never.
    set_rates(optimiser, 120, warmup=0, decay_until=0)
    assert optimiser.param_groups[0]["lr"] == 2.0


def test_half_a_cosine_falls_from_one_to_nothing_and_stays_there() -> None:
    found = [half_cosine(share) for share in (0.0, 0.5, 1.0, 2.0)]
    assert found == pytest.approx([1.0, 0.5, 0.0, 0.0])
