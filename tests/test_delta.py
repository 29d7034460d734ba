"""One clip that comes, changes or goes: ingest, fit_flame and render_views do its unit, and no other."""

import re
from pathlib import Path

import pytest
from PIL import Image

from pipeline.config.params import Params
from pipeline.config.scales import scale_params
from pipeline.core.paths import INGEST, LABELS, VIEWS
from pipeline.engine.scratch import units_folder
from pipeline.fit_flame.table import fit_table
from pipeline.ingest.manifest import source_folders
from pipeline.ingest.worker import ingest
from pipeline.render.views import render_views
from pipeline.store.tables import write_table
from tests.ingest.test_ingest import FACE, MACHINE, SETTINGS, film
from tests.support.folders import checksums
from tests.support.render_inputs import inputs
from tests.support.videos import write_video

__all__ = ["inputs"]  # the fixture

pytestmark = pytest.mark.slow
SAID = re.compile(r"(ingest|fit_flame_vfhq|render_views): (?:all ()\d+|(\d+) of (\d+))", re.MULTILINE)
# Where the shards of each stage lie.
PLACES = {
    "ingest": lambda: INGEST / "shards",
    "fit_flame_vfhq": lambda: units_folder("fit_flame_vfhq"),
    "render_views": lambda: VIEWS / "shards",
}
Shards = dict[str, dict[str, tuple]]


@pytest.fixture
def params(tmp_path, monkeypatch) -> Params:
    """A folder of three portraits and four clips."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for name in ("portraits", "clips"):
        (tmp_path / name).mkdir()
    for name in "abc":
        Image.fromarray(FACE).save(tmp_path / "portraits" / f"{name}.png")
    for start, name in enumerate(("one", "two", "three", "four")):
        write_video(tmp_path / "clips" / f"{name}.mp4", film(6, start=start))
    # Of so few clips, one more would change the splits of others, and a sample says its split.
    (tmp_path / "lists").mkdir()
    lists = {"train": "three\nfour\nzero", "validation": "two", "test": "one"}
    for name, clips in lists.items():
        (tmp_path / f"lists/{name}.txt").write_text(clips)
    smoke = scale_params("smoke")
    changes = {
        "ingest": SETTINGS.model_copy(update={"frames": 4, "split": "lists"}),
        "machine": MACHINE,
        # The photograph is of one expression: how well it fits is not what this is about.
        "fit_flame": smoke.fit_flame.model_copy(update={"max_error": 10.0}),
        "render_views": smoke.render_views.model_copy(update={"views": 1}),
    }
    return smoke.model_copy(update=changes)


def run(params: Params, networks: Path) -> None:
    """The three stages; the networks are those of the rendering tests."""
    ingest(params.ingest, params.networks.image, MACHINE, *source_folders(params.ingest), INGEST)
    table, _ = fit_table(params, "vfhq", INGEST)
    labels = write_table(LABELS / "vfhq.parquet", table)
    folders = [networks / name for name in ("motion", "perception", "psi3d")]
    render_views(params, INGEST, labels, *folders, VIEWS, Path("worst.jpg"))


def shards() -> Shards:
    """Checksum, inode and time of every shard of each stage."""
    found: Shards = {}
    for stage, place in PLACES.items():
        sums = checksums(place())
        found[stage] = {}
        for path in place().glob("*.tar"):
            state = path.stat()
            found[stage][path.name] = (sums[path.name], state.st_ino, state.st_mtime_ns)
    return found


def done(said: str) -> dict[str, int]:
    """How many units each stage did, by its own words."""
    return {stage: int(number or 0) for stage, _, number, _ in SAID.findall(said)}


def changed(before: Shards, after: Shards) -> set[tuple[str, str]]:
    """The shards that are new, gone or written again."""
    pairs = set()
    for stage in PLACES:
        names = before[stage].keys() | after[stage].keys()
        pairs |= {(stage, name) for name in names if before[stage].get(name) != after[stage].get(name)}
    return pairs


def test_a_clip_that_comes_changes_or_goes(params, inputs, tmp_path, capfd):
    def again() -> tuple[dict[str, int], Shards]:
        capfd.readouterr()
        run(params, inputs)
        return done(capfd.readouterr().err), shards()

    units, first = again()
    assert units == {"ingest": 6, "fit_flame_vfhq": 4, "render_views": 4}
    kept_name = {"ingest": "clips-one-d03d1d", "fit_flame_vfhq": "clips-one-d03d1d"}
    kept_name["render_views"] = "views-one-d03d1d-000000"
    assert all(f"{name}.tar" in first[stage] for stage, name in kept_name.items())

    write_video(tmp_path / "clips/zero.mp4", film(6, start=9))
    units, second = again()
    one_each = dict.fromkeys(PLACES, 1)
    assert units == one_each
    new = {(stage, name) for stage, name in changed(first, second)}
    assert {stage for stage, _ in new} == set(PLACES) and len(new) == 3
    assert not any(name in first[stage] for stage, name in new)

    write_video(tmp_path / "clips/one.mp4", film(6, start=12))
    units, third = again()
    assert units == one_each
    assert changed(second, third) == {(stage, f"{name}.tar") for stage, name in kept_name.items()}

    (tmp_path / "clips/zero.mp4").unlink()
    units, last = again()
    assert units == dict.fromkeys(PLACES, 0)
    assert changed(third, last) == new
