"""One thread per test process: with more they would wait for each other, and the bits would be others.

A test that starts a process has the marker `process`; the others are those of `make check`. One that starts a
process without the marker fails.
"""

# First, as it sets the threads of NumPy.
import pipeline  # noqa: F401, I001

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)

STARTS = {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen"}
FINDERS = {"ldconfig", "gcc", "cc", "ld"}  # Python itself asks them for a library when mediapipe is imported
LONGEST = ["test_end_to_end.py", "test_processes.py"]
running: list[pytest.Item] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first: while one process has the graph, a second one does the others."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    running.append(item)
    try:
        return (yield)
    finally:
        running.pop()


def refuse_processes(event: str, arguments: tuple[Any, ...]) -> None:
    """Python's audit hook: raises when a test without the marker starts a process."""
    # Fixtures of a module run before its first test and count as a part of it.
    if event not in STARTS or not running or running[-1].get_closest_marker("process"):
        return
    if event != "subprocess.Popen" or Path(arguments[0]).name not in FINDERS:
        raise AssertionError(f"{running[-1].name} starts a process ({event}); pytest.mark.process is missing")


sys.addaudithook(refuse_processes)
