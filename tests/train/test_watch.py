"""What is seen of a training while it runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.train import watch
from pipeline.train.loop import train
from tests.support.short_training import ShortTask, Stop, run_of


def test_without_a_terminal_a_line_is_said_now_and_then(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A line for each step instead of one a minute.
    monkeypatch.setattr(watch, "PLAIN_EVERY", 0.0)
    train(ShortTask(), run_of(tmp_path, steps=10))
    shown = capsys.readouterr().err.splitlines()
    lines = [line for line in shown if line.startswith("test: step")]
    begins = [line.split(",")[0] for line in lines]
    assert begins == [f"test: step {step} of 10" for step in range(1, 11)]
    for part in ("loss ", "images/s", "% waiting for data", " left", "GiB"):
        assert part in lines[-1]


def test_curves_are_there_while_the_run_goes_on(tmp_path: Path) -> None:
    run = replace(run_of(tmp_path / "scratch"), curves=tmp_path / "curves.json")
    with pytest.raises(Stop):
        train(ShortTask(stop_at=57), run)
    rows = json.loads(run.curves.read_text())
    # A point every second step, up to the last one before the end.
    steps = [row["step"] for row in rows]
    assert steps == list(range(2, 57, 2))
    for row in rows:
        assert row.keys() == {"step", "images", "loss"}


def test_zeroed_gradients_are_shown(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PLAIN_EVERY", 0.0)
    with watch.Watch("test", steps=2, batch=1, start=0, shown=True, curves=None) as seen:
        seen.step({"loss": 1.0}, zeroed=3)
    assert "3 gradients zeroed" in capsys.readouterr().err
