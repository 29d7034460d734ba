"""The two rendering stages at smoke scale, on the inputs of tests/support/render_inputs.py."""

from pathlib import Path
from typing import Any

from pipeline.config.params import Params
from pipeline.config.scales import scale_params
from pipeline.render.genhead import render_genhead
from pipeline.render.views import render_views

SIZES = scale_params("smoke").networks
VIEW_INPUTS = ("ingest", "labels/vfhq.parquet", "motion", "perception", "psi3d")


def params_with(**sections: dict[str, Any]) -> Params:
    """Params of the smoke scale with other values in some sections."""
    params = scale_params("smoke")
    changed = {}
    for name, values in sections.items():
        section = getattr(params, name)
        changed[name] = section.model_copy(update=values)
    return params.model_copy(update=changed)


def views(inputs: Path, out: Path, **section: Any) -> dict[str, Any]:
    """Run render_views; two views of a frame, four frames in a shard."""
    params = params_with(render_views={"views": 2, "shard_size": 4} | section)
    paths = [inputs / name for name in VIEW_INPUTS]
    # The picture of a few frames lies beside what is written.
    picture = out.with_suffix(".jpg")
    return render_views(params, *paths, out, picture)


def heads(inputs: Path, out: Path, **section: Any) -> dict[str, Any]:
    """Run render_genhead; five heads, three views of each, two heads in a shard."""
    small = {"heads": 5, "views": 3, "points": 40, "shard_size": 2}
    params = params_with(render_genhead=small | section)
    return render_genhead(params, inputs / "labels", inputs / "genhead", out)
