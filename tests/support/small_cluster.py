"""A cluster of Ray on this machine, as that of somebody who sets machine.ray_address."""

import contextlib
from collections.abc import Iterator

import pytest
from ray.cluster_utils import Cluster

OBJECT_STORE_MB = 100


@contextlib.contextmanager
def small_cluster(nodes: int, cpus: int, gpus: int = 0) -> Iterator[str]:
    """The address of a cluster of so many nodes with so many CPUs and GPUs each. It is gone afterwards.

    The GPUs need not be there: Ray believes what it is told.
    """
    # By default a node takes a third of the machine's memory for objects.
    node = {"num_cpus": cpus, "num_gpus": gpus, "object_store_memory": OBJECT_STORE_MB * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_UV_RUN_RUNTIME_ENV"):
            patch.setenv(name, "0")
        cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        try:
            for _ in range(nodes - 1):
                cluster.add_node(**node)
            yield cluster.address
        finally:
            cluster.shutdown()
