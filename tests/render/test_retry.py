"""Of a rendering stage, too, only what is lost is made again, and as it was."""

from pathlib import Path

import pytest

from pipeline.config.params import load_params
from pipeline.retry import retry
from stages import render_views
from tests.support import small_cache
from tests.support.folders import checksums

VIEWS = Path("data/views")
inputs, made, project = small_cache.inputs, small_cache.made, small_cache.project


@pytest.mark.process
def test_views_are_done_again_one_unit_at_a_time(project, capfd):
    params = load_params()
    render_views.main(params)
    found = retry(params, "render_views")
    assert (found.again, found.kept, found.left) == ({}, 3, 0)
    before = checksums(VIEWS)
    Path(".cache/psi4d/units/render_views/views-b-000000.tar").unlink()
    found = retry(params, "render_views")
    assert len(found.again) + found.left == 1
    assert found.kept == 2
    capfd.readouterr()
    render_views.main(params)
    assert "render_views: 1 of 3 shards to do, 2 done already" in capfd.readouterr().err
    assert checksums(VIEWS) == before
