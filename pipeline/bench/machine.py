"""What measured numbers belong to: the machine, the library and the code."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


def machine_facts() -> dict[str, Any]:
    """CPU, cores and threads, torch's version, and the commit of the code; for the JSON of a benchmark."""
    return {
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _cpu() -> str:
    """The CPU's name as the system tells it, its architecture where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout, with "+" behind it when files differ from it; None without git."""
    # Tags are left out: numbers belong to a commit, and a tag may be moved.
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()
