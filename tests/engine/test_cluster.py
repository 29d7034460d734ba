"""Two Ray nodes on this machine: the same bytes as in this process, and both took part."""

import os
from functools import partial
from types import SimpleNamespace

import pytest
from ray.cluster_utils import Cluster

from pipeline.engine.run import run_units
from tests.support import killing


class Rooted(killing.Slow):
    """Writes down whose child it is: the Ray node's."""

    def __call__(self, unit):
        self.log.with_name(f"node-{os.getppid()}").touch()
        return super().__call__(unit)


@pytest.mark.process
def test_a_cluster_of_two_nodes_makes_the_same_bytes(tmp_path, monkeypatch):
    killing.drive(tmp_path / "here", 0)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_UV_RUN_RUNTIME_ENV"):
        monkeypatch.setenv(name, "0")
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        cluster.add_node(**node)
        machine = SimpleNamespace(workers=2, device="cpu", ray_address=cluster.address, object_store_mb=100)
        (tmp_path / "there").mkdir()
        run_units(
            killing.UNITS,
            partial(Rooted, tmp_path / "there/log"),
            tmp_path / "there/scratch",
            machine,
            "cluster",
        )
    finally:
        cluster.shutdown()
    assert killing.shards(tmp_path / "there") == killing.shards(tmp_path / "here")
    nodes = list((tmp_path / "there").glob("node-*"))
    assert len(nodes) == 2 and not (tmp_path / f"there/node-{os.getpid()}").exists()
