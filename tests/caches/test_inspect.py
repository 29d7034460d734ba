"""What `psi4d inspect` says and draws of a small real cache."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.caches.cache import Cache, angles
from pipeline.caches.inspect import sample, summary
from pipeline.caches.page import write_page
from pipeline.caches.sheet import REAL, RIM, TILE, rose, write_sheet
from pipeline.cli import app
from pipeline.core.errors import UserError
from pipeline.core.pictures import CAPTION
from pipeline.geometry.camera import look_at
from pipeline.store.shards import ShardReader, decode_npy
from pipeline.store.view_index import write_index
from tests.support import small_cache

REMOTE = re.compile(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|url\(["']?(?:https?:)?//|fetch\(|import\s""")
VIEWS, HEADS = Path("data/views"), Path("data/genhead")
inputs, made, project = small_cache.inputs, small_cache.made, small_cache.project


def rows(text: str) -> dict[str, list[str]]:
    """The lines of a text table by their first cell."""
    return {cells[0]: cells[1:] for line in text.splitlines() if (cells := re.split(r" {2,}", line.strip()))}


def test_angles_are_those_of_look_at():
    yaws, pitches, radii = (-0.7, 0.0, 0.4), (-0.1, 0.2, 0.6), (3.7, 4.0, 4.4)
    cameras = [
        look_at(yaw, pitch * math.pi / 2, radius, np.zeros(3))
        for yaw, pitch, radius in zip(yaws, pitches, radii, strict=True)
    ]
    wanted = np.stack([np.degrees(yaws), np.degrees(np.arcsin(pitches)), radii], axis=1)
    assert np.allclose(angles(np.stack(cameras)), wanted, atol=1e-4)


def test_the_summary_counts(project):
    text = summary(Cache(VIEWS))
    table = rows(text)
    assert "multi-view cache, 10 samples in 3 shards" in text
    assert (table["train"], table["test"], table["all"]) == (
        ["2", "6", "12", "6"],
        ["1", "4", "8", "4"],
        ["3", "10", "20", "10"],
    )
    assert sum(int(table[reason][0]) for reason in ("no fitted head", "no face")) == 2
    cameras = np.stack(
        [
            decode_npy(ShardReader(VIEWS / "shards").read(key, "cameras.npy"))
            for key in ShardReader(VIEWS / "shards")
        ]
    )
    yaw = angles(cameras[:, 1:].reshape(-1, 25))[:, 0]
    assert [float(table["pseudo yaw °"][i]) for i in (0, 3, 6)] == pytest.approx(
        [yaw.min(), np.median(yaw), yaw.max()], rel=1e-3
    )
    assert {
        "psnr",
        "coverage",
        "identity",
        "real yaw °",
        "real pitch °",
        "real radius",
        "pseudo pitch °",
        "pseudo radius",
    } <= table.keys()


def test_frames_that_are_not_trained_on_are_counted(project):
    cache = Cache(VIEWS)
    assert all(entry.kept for entry in cache.entries) and "not trained on" not in summary(cache)
    worst = min(entry.quality["psnr"] for entry in cache.entries)
    write_index(
        VIEWS / "shards",
        VIEWS / "index.parquet",
        lambda quality: "psnr" if quality["psnr"] < worst + 1e-3 else "",
    )
    cache = Cache(VIEWS)
    table = rows(summary(cache))
    assert table["all"] == ["3", "10", "20", "9"] and table["not trained on, low psnr"] == ["1"]
    (out,) = (entry for entry in cache.entries if not entry.kept)
    assert rows(sample(cache, out))[out.key][-1] == "no"


def test_the_summary_of_heads(project):
    table = rows(summary(Cache(HEADS)))
    assert (
        table["all"] == ["0", "5", "15"]
        and {"view yaw °", "view radius"} <= table.keys()
        and "psnr" not in table
    )


def test_a_sample_with_all_its_fields(project):
    cache = Cache(VIEWS)
    (entry,) = cache.chosen("b", 1)
    table = rows(sample(cache, entry))
    fields = ShardReader(VIEWS / "shards").read("b-000001")
    assert fields.keys() <= table.keys()
    assert table["cameras.npy"] == ["float32", "3 x 25", f"{len(fields['cameras.npy'])}"]
    assert table["label.npy"][:2] == ["float32", "437"] and table["mask.png"][:2] == ["uint8", "32 x 32"]
    assert {"real", "0", "1"} <= table.keys() and table["b-000001"][2] == "views-000001.tar"
    assert cache.chosen("b-000001", None) == [entry]
    with pytest.raises(UserError, match="has no clip b frame 77"):
        cache.chosen("b", 77)


def test_the_contact_sheet(project):
    cache = Cache(VIEWS)
    assert write_sheet(cache, cache.chosen("c", None), Path("out/sheet.png")) == 4
    with Image.open("out/sheet.png") as image:
        assert image.size == (5 * TILE, 4 * (TILE + 2 * CAPTION + 4))  # real, mask, two views, rose
        assert image.crop((0, 2 * CAPTION, TILE, 2 * CAPTION + TILE)).getextrema() != ((255, 255),) * 3
    assert write_sheet(cache, cache.entries, Path("out/all.png")) == 8
    assert write_sheet(Cache(HEADS), Cache(HEADS).entries, Path("out/heads.png")) == 5


def test_the_rose_points_where_the_camera_is():
    """A camera on the right of the viewer in front (world +x) has its dot there, one above is above.

    At half the angle of the rim it is half way to it.
    """
    size = 201
    for yaw, pitch, right, up in ((-RIM / 2, 0, 0.22, 0), (RIM / 2, 0, -0.22, 0), (0, RIM, 0, 0.44)):
        drawn = rose(np.array([[yaw, pitch, 4.0]]), ["real"], size)
        x, y = round(size // 2 + right * size), round(size // 2 - up * size)
        assert tuple(drawn[y, x]) == REAL


def test_the_page_holds_all_numbers_and_loads_its_pictures(project, monkeypatch):
    monkeypatch.setattr("pipeline.caches.page.FRAMES_PER_SHEET", 3)
    cache = Cache(VIEWS)
    page = write_page(cache, cache.entries, Path("out/page"))
    text = page.read_text()
    assert page == Path("out/page/index.html") and len(text) < 40_000 and "base64" not in text
    assert not REMOTE.findall(text) and "{{" not in text
    content = json.loads(
        re.search(r'<script id="content" type="application/json">(.*?)</script>', text, re.DOTALL)[1]
    )
    assert content["pictures"] == ["real", "0", "1", "mask"] and content["qualities"] == [
        "psnr",
        "coverage",
        "identity",
    ]
    assert [(clip["name"], clip["split"], len(clip["frames"])) for clip in content["clips"]] == [
        ("a", "train", 3),
        ("b", "train", 3),
        ("c", "test", 4),
    ]
    assert [len(clip["sheets"]) for clip in content["clips"]] == [1, 1, 2]
    side = 32
    for clip in content["clips"]:
        for number, name in enumerate(clip["sheets"]):
            with Image.open(page.parent / name) as image:
                assert image.size == (4 * side, min(len(clip["frames"]) - 3 * number, 3) * side)
    frame = content["clips"][0]["frames"][0]
    assert frame["key"] == "a-000000" and np.allclose(
        frame["cameras"], angles(cache.cameras("a-000000")), atol=0.01
    )
    assert (
        write_page(cache, cache.entries, Path("out/one.html")) == Path("out/one.html")
        and Path("out/one-sheets").is_dir()
    )


def test_the_command(project):
    def inspect(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["inspect", *arguments])
        assert result.exit_code == 0, result.exception
        return result.output

    assert "10 samples" in inspect("data/views")
    assert rows(inspect("data/views", "--clip", "b")).keys() == {"key", "b-000000", "b-000001", "b-000002"}
    assert "cameras.npy" in inspect("data/genhead", "--frame", "3")
    assert "4 of 4 frames are now in s.png" in inspect("data/views", "--clip", "c", "--sheet", "s.png")
    assert "5 frames are now in page/index.html" in inspect("data/genhead", "--html", "page")
    (VIEWS / "index.parquet").unlink()
    assert "psi4d verify data/views" in str(CliRunner().invoke(app, ["inspect", "data/views"]).exception)
