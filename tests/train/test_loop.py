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

KINDS = ("json", "safetensors")


def test_a_killed_run_goes_on_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "cut", stop_at=57)
    names = sorted(path.name for path in (tmp_path / "cut").glob("checkpoint-*"))
    assert names == [f"checkpoint-0000000{step}.{kind}" for step in (20, 40) for kind in KINDS]
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
    assert Checkpoints(tmp_path / "cut", Group()).load(ShortTask(), 80).done == 80


def test_the_last_three_checkpoints_are_kept(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, stop_at=101, steps=200)
    steps = [int(path.stem[-9:]) for path in sorted(tmp_path.glob("*.safetensors"))]
    assert steps == [60, 80, 100]


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
    assert stopped.value.code == STOPPED == 75
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
    values = [[torch.tensor([float(value)]), None] for value in (1e8, 1.0, -1e8, 1.0)]
    tree = TreeSum()
    for value in values:
        tree.add(value)
    # 1e8 + 1 is 1e8 in float32, and so is the other half.
    assert tree.total() == [torch.tensor([0.0]), None]
    halves = [add_right([torch.tensor([1e8])], [torch.tensor([1.0])])[0]]
    halves.append(add_right([torch.tensor([-1e8])], [torch.tensor([1.0])])[0])
    assert torch.equal(add_processes(halves), tree.total()[0])


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
        assert parameter.unique().item() == pytest.approx(0.5**0.1)


class Diverging(ShortTask):
    """Its loss is no number."""

    def losses(self, step: int, microbatch: int, batch: Tensor) -> Iterator[Loss]:
        loss = self.network(batch).mean() * (torch.nan if step == 30 else 0.0)
        yield Loss("o", loss, {"lpips": loss.detach()})


def test_a_value_that_is_not_finite_stops_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="test: 'lpips' is nan at step 31"):
        train(Diverging(), run_of(tmp_path))
    # The checkpoint before it is still there.
    assert Checkpoints(tmp_path, Group()).load(ShortTask(), 80).done == 20


def test_gradients_that_are_not_finite_do_no_harm() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.tensor([torch.nan, torch.inf, 0.5])
    assert clean_gradients(optimiser) == 1
    assert weight.grad.tolist() == [0.0, 1e5, 0.5]
    weight.grad = torch.tensor([3e38, -3e38, 0.5])
    assert clean_gradients(optimiser) == 0
    assert weight.grad.tolist() == torch.tensor([3e38, -3e38, 0.5]).tolist()


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
