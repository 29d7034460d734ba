"""Two Ray nodes on this machine: the same bytes as in this process, and both took part."""

import os
from functools import partial
from types import SimpleNamespace

import pytest

from pipeline.engine.run import run_units
from tests.support import killing
from tests.support.small_cluster import OBJECT_STORE_MB, small_cluster


class Rooted(killing.Slow):
    """Writes down whose child it is: the Ray node's."""

    def __call__(self, unit):
        self.log.with_name(f"node-{os.getppid()}").touch()
        return super().__call__(unit)


@pytest.mark.process
def test_a_cluster_of_two_nodes_makes_the_same_bytes(undisturbed, tmp_path):
    worker = partial(Rooted, tmp_path / "log")
    with small_cluster(nodes=2, cpus=1) as address:
        machine = SimpleNamespace(
            workers=2, device="cpu", ray_address=address, object_store_mb=OBJECT_STORE_MB
        )
        run_units(killing.UNITS, worker, tmp_path / "scratch", machine, "cluster")
    assert killing.shards(tmp_path) == undisturbed
    # Equal bytes would not show that one node did everything, or this process.
    nodes = list(tmp_path.glob("node-*"))
    assert len(nodes) == 2
    assert not (tmp_path / f"node-{os.getpid()}").exists()
