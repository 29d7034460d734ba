"""What a log tells of work that takes long."""

import pytest

from pipeline.core import progress as module
from pipeline.core.progress import progress


@pytest.fixture
def every_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAID_EVERY", 0.0)


@pytest.mark.usefixtures("every_item")
def test_a_log_says_how_far_it_is_and_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    shards = [300, 100]
    assert list(progress(shards, label="ingest", total=1000, initial=600, unit="files", size=int)) == shards
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("ingest: 900 of 1,000 files, ") and first.endswith(" a second, 0 s left")
    assert last.startswith("ingest: 1,000 of 1,000 files, ")


@pytest.mark.usefixtures("every_item")
def test_without_a_total_it_counts(capsys: pytest.CaptureFixture[str]) -> None:
    list(progress("ab", label="orbit", unit="frames"))
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("orbit: 1 frame, ") and last.startswith("orbit: 2 frames, ")


def test_what_takes_less_than_a_minute_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), label="verify", total=3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
