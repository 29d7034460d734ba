"""Two Ray nodes on this machine: the same bytes as in this process, and an actor on the GPU of each."""

import os
from functools import partial
from types import SimpleNamespace

import pytest

from pipeline.engine.run import run_units
from tests.support import killing
from tests.support.small_cluster import OBJECT_STORE_MB, small_cluster


class Rooted(killing.Slow):
    """Writes down whose child it is, the Ray node's, and which GPU it has been given."""

    def __call__(self, unit):
        gpu = os.environ["CUDA_VISIBLE_DEVICES"]
        self.log.with_name(f"node-{os.getppid()}-{gpu}").touch()
        return super().__call__(unit)


@pytest.mark.process
def test_a_cluster_of_two_nodes_makes_the_same_bytes(undisturbed, tmp_path):
    worker = partial(Rooted, tmp_path / "log")
    # This machine has none of the GPUs. `workers` is for stages that have no use for one.
    with small_cluster(nodes=2, cpus=1, gpus=1) as address:
        machine = SimpleNamespace(
            workers=1, device="auto", ray_address=address, object_store_mb=OBJECT_STORE_MB
        )
        run_units(killing.UNITS, worker, tmp_path / "scratch", machine, "cluster", gpu=True)
    assert killing.shards(tmp_path) == undisturbed
    # Equal bytes would not show that one node did everything, or this process.
    actors = [path.name.split("-") for path in tmp_path.glob("node-*")]
    assert [gpu for _, _, gpu in actors] == ["0", "0"]
    assert len({node for _, node, _ in actors} - {str(os.getpid())}) == 2
