"""A project with small real caches, recorded by DVC.

The rendering stages make them from the inputs of tests/support/render_inputs.py.
"""

import contextlib
import io
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from pipeline.config.params import load_params
from pipeline.config.scales import scale_data
from pipeline.store.tables import write_table
from stages import render_genhead, render_views
from tests.support import render_inputs

DVC = """
stages:
  render_views:
    cmd: python -m stages.render_views
    deps: [data/ingest, data/labels/vfhq.parquet, data/pretrain/motion, data/pretrain/perception, data/psi3d]
    params: [seed, flame.model, networks, render_views]
    outs: [data/views]
  render_genhead:
    cmd: python -m stages.render_genhead
    deps: [data/labels, data/pretrain/genhead]
    params: [seed, flame.model, networks, render_genhead]
    outs: [data/genhead]
"""
SIZES = {
    "render_views": {"shard_size": 4},
    "render_genhead": {"heads": 5, "views": 3, "points": 40, "shard_size": 2},
}
inputs = render_inputs.inputs


def params_text() -> str:
    """params.yaml at the smoke scale with SIZES."""
    data = scale_data("smoke")
    for section, values in SIZES.items():
        data[section] |= values
    stream = io.StringIO()
    YAML().dump(data, stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def made(inputs, tmp_path_factory) -> Path:
    """The project: 10 frames in 3 shards of views (3, 3, 4), 5 heads in 3 shards (2, 2, 1)."""
    folder = tmp_path_factory.mktemp("made")
    for name, place in (
        ("ingest", "ingest"),
        ("labels", "labels"),
        ("psi3d", "psi3d"),
        ("motion", "pretrain/motion"),
        ("perception", "pretrain/perception"),
        ("genhead", "pretrain/genhead"),
    ):
        shutil.copytree(inputs / name, folder / "data" / place)
    frames = folder / "data/ingest/frames.parquet"
    table = pq.read_table(frames)
    write_table(
        frames,
        table.append_column(
            "reason",
            pa.array(["" if status == "ok" else "no face" for status in table["status"].to_pylist()]),
        ),
    )
    (folder / "dvc.yaml").write_text(DVC)
    (folder / "params.yaml").write_text(params_text())
    # DVC keeps a state beside the cache, by default in a folder of the machine that all projects share.
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_SITE_CACHE_DIR", str(folder / "state"))
        patch.delenv("DVC_ROOT", raising=False)
        for stage in (render_views, render_genhead):
            stage.main(load_params())
        # Or what is broken would come back from there, and not be made again.
        shutil.rmtree(".cache/psi4d/units")
        with Repo.init(no_scm=True) as repo:
            repo.commit(force=True)
    return folder


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Path:
    """A copy of the project, as the current folder."""
    # Rendering takes seconds and a copy none, so that each test may break its own.
    folder = tmp_path / "project"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(folder / "state"))
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return folder
