"""Any process is killed, at any time: the run goes on and ends with the same bytes.

It repeats nothing that is finished.
"""

import contextlib
import ctypes
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.engine.isolation import Maker, Outcome, attempt
from tests.support import killing

MS_REMOUNT, MNT_DETACH = 32, 2
pytestmark = pytest.mark.process


@pytest.mark.parametrize(("victim", "seed"), [("driver", 1), ("actor", 2), ("ray worker", 3)])
def test_kills(victim, seed, undisturbed, tmp_path):
    result = killing.kill_one(tmp_path, victim, seed)
    assert result.killed and not result.repeated
    assert result.shards == undisturbed
    # Each unit leaves a shard, its sidecar and a table.
    assert len(result.shards) == 3 * len(killing.UNITS)


@contextlib.contextmanager
def small_disk(place: Path, size: int):
    """A file system of so many bytes, mounted at `place`; yields a function that makes it larger."""
    # A real file system that is full, as a limit of the kernel would not be seen by its free space.
    libc = ctypes.CDLL(None, use_errno=True)
    place.mkdir()

    def mount(flags: int, bytes_: int) -> int:
        return libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", flags, f"size={bytes_}".encode())

    if mount(0, size):
        pytest.skip(f"no right to mount: {os.strerror(ctypes.get_errno())}")
    try:
        yield lambda larger: mount(MS_REMOUNT, larger)
    finally:
        libc.umount2(str(place).encode(), MNT_DETACH)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_stops_the_run_and_it_goes_on_when_there_is_space(workers, undisturbed, tmp_path):
    with small_disk(tmp_path / "disk", 3_000_000) as enlarge:
        with pytest.raises(UserError, match=r"No space left on device.*free some space, then run again"):
            killing.drive(tmp_path / "disk", workers)
        done = list((tmp_path / "disk/scratch").glob("*.done.json"))
        assert 2 <= len(done) < len(killing.UNITS)
        # Space is there again, and what is finished is not done a second time.
        assert not enlarge(100_000_000)
        begun = len((tmp_path / "disk/log").read_text().splitlines())
        # Another number of workers may go on.
        killing.drive(tmp_path / "disk", 0)
        assert killing.shards(tmp_path / "disk") == undisturbed
        assert not list((tmp_path / "disk/scratch").glob(".*"))
        again = (tmp_path / "disk/log").read_text().splitlines()[begun:]
        finished = {path.name.split(".")[0] for path in done}
        assert not finished & set(again)


def test_a_file_that_may_not_grow(undisturbed, tmp_path):
    """Where nothing can be mounted: the kernel refuses large files, as a quota does."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    command = [sys.executable, "-m", "tests.support.killing", str(tmp_path), "0"]
    run = subprocess.run(command, cwd=killing.ROOT, preexec_fn=limit, capture_output=True, text=True)
    assert run.returncode == 1
    assert "File too large. Make the folder writable or free some space" in run.stderr
    assert not killing.shards(tmp_path) and not list((tmp_path / "scratch").glob(".*.tmp"))
    # The other units were not tried in vain.
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    killing.drive(tmp_path, 0)
    assert killing.shards(tmp_path) == undisturbed


def test_a_worker_that_dies_while_it_is_loading_stops_the_run_after_three_times(tmp_path):
    """As one whose networks do not fit into memory would: no other unit could be done either."""
    unit = killing.UNITS[0]

    def outcome(make) -> Outcome:
        return attempt(unit, Maker(make), tmp_path, "run")

    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            outcome(lambda: os._exit(9))
        os.waitpid(pid, 0)
    given_up = outcome(lambda: pytest.fail("loaded once more"))
    assert given_up.stop
    assert "died 3 times while it was loading" in given_up.failure
    # The next run begins anew: there may be more memory now.
    works = outcome(partial(killing.Slow, tmp_path / "log"))
    assert not works.failure
