"""Limits of containers, from the files in which Linux tells them."""

import os

import psutil
import pytest

from pipeline.core.limits import cores, free_memory

GIB = 1 << 30


def write(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_of_the_second_version_the_narrowest_group_counts(tmp_path):
    write(
        tmp_path,
        proc__self__cgroup="0::/outer/inner\n",
        sys__fs__cgroup__outer__cpu_dot_max="100000 100000\n",
        sys__fs__cgroup__outer__inner__cpu_dot_max="max 100000\n",
        sys__fs__cgroup__outer__memory_dot_max=f"{GIB}\n",
        sys__fs__cgroup__outer__memory_dot_current=f"{GIB // 2}\n",
        sys__fs__cgroup__outer__memory_dot_stat=f"anon 5\ninactive_file {GIB // 4}\n",
        sys__fs__cgroup__outer__inner__memory_dot_max="max\n",
    )
    assert cores(tmp_path) == 1
    assert free_memory(tmp_path) == GIB - GIB // 2 + GIB // 4


def test_of_the_first_version(tmp_path):
    write(
        tmp_path,
        proc__self__cgroup="9:cpuacct,cpu:/box\n8:memory:/box\n7:pids:/box\n",
        sys__fs__cgroup__cpu__box__cpu_dot_cfs_quota_us="50000\n",
        sys__fs__cgroup__cpu__box__cpu_dot_cfs_period_us="100000\n",
        sys__fs__cgroup__memory__box__memory_dot_limit_in_bytes=f"{GIB}\n",
        sys__fs__cgroup__memory__box__memory_dot_usage_in_bytes=f"{2 * GIB}\n",
        sys__fs__cgroup__memory__memory_dot_limit_in_bytes=f"{(1 << 63) - 4096}\n",
        sys__fs__cgroup__memory__memory_dot_usage_in_bytes="5\n",
    )
    # Half a core is one process, and what is over the limit is no memory at all.
    assert cores(tmp_path) == 1
    assert free_memory(tmp_path) == 0


@pytest.mark.parametrize("text", ["", "0::/\n", "0::/gone\n", "nonsense\n"])
def test_without_limits_the_machine_counts(tmp_path, text):
    write(tmp_path, proc__self__cgroup=text, sys__fs__cgroup__cpu_dot_max="nonsense\n")
    assert cores(tmp_path) == len(os.sched_getaffinity(0))
    assert free_memory(tmp_path) > 0.5 * psutil.virtual_memory().available
