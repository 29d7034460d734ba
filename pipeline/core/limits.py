"""What this process may use: a container often gets less than its machine has.

Limits are those of Linux' control groups, of the group of this process and of those around it, in both
versions of their files.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path("/")
UNLIMITED = 1 << 60  # bytes; the first version writes a number near 2^63 where there is no limit


def cores(root: Path = ROOT) -> int:
    """The processor cores that this process may use, at least 1.

    `root` is the root of the file system, another one in tests.
    """
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _groups("cpu", root):
        quota, period = _quota(folder)
        if quota > 0 and period > 0:
            # Part of a core is worth a process that waits at times.
            found = min(found, max(1, round(quota / period)))
    return found


def free_memory(root: Path = ROOT) -> int:
    """The bytes of memory that this process may still take."""
    found = psutil.virtual_memory().available
    for folder in _groups("memory", root):
        limit = _number(folder, "memory.max", "memory.limit_in_bytes")
        used = _number(folder, "memory.current", "memory.usage_in_bytes")
        if limit is None or used is None or limit >= UNLIMITED:
            continue
        # Pages of files count as used, though they are given back when something needs the room.
        left = limit - used + _file_pages(folder)
        found = min(found, max(0, left))
    return found


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of the group of this process and of all around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        names, _, own = rest.partition(":")
        if not names:
            top = root / "sys/fs/cgroup"
        elif controller in names.split(","):
            top = root / "sys/fs/cgroup" / controller
        else:
            continue
        folder = top / own.lstrip("/")
        # In a container the path may be that of the machine, of which it sees nothing.
        yield from (each for each in (folder, *folder.parents) if each.is_relative_to(top))


def _quota(folder: Path) -> tuple[float, float]:
    """The microseconds of processor time in each period, 0 without a limit, and the period."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return (0.0 if quota == "max" else float(quota)), float(period)
    except (OSError, ValueError):
        quota = _number(folder, "cpu.cfs_quota_us")
        period = _number(folder, "cpu.cfs_period_us")
        return float(quota or 0), float(period or 0)


def _number(folder: Path, *names: str) -> int | None:
    """The number in the first of these files that has one."""
    for name in names:
        try:
            return int((folder / name).read_text())
        except (OSError, ValueError):
            continue
    return None


def _file_pages(folder: Path) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    stat = dict(line.split() for line in lines if len(line.split()) == 2)
    return int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
