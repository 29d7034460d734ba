"""Only what was given up or rejected is done again, after a fix."""

import numpy as np
import pytest
from PIL import Image

from pipeline.config.scales import scale_params
from pipeline.core.errors import UserError
from pipeline.core.files import sha256
from pipeline.core.paths import INGEST
from pipeline.engine.scratch import units_folder
from pipeline.ingest.manifest import source_folders
from pipeline.ingest.worker import ingest
from pipeline.retry import retry
from tests.ingest.test_ingest import FACE, MACHINE, SETTINGS, film, table
from tests.support.videos import write_video


@pytest.fixture
def params(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "portraits").mkdir()
    (tmp_path / "clips").mkdir()
    for name in "abc":
        Image.fromarray(FACE).save(tmp_path / "portraits" / f"{name}.png")
    (tmp_path / "portraits/d.png").touch()
    for start, name in enumerate(("one", "two", "three")):
        write_video(tmp_path / "clips" / f"{name}.mp4", film(8, start=start))
    (tmp_path / "clips/zero.mp4").write_text("no film")
    smoke = scale_params("smoke")
    settings = SETTINGS.model_copy(update={"shard_size": 2})
    return smoke.model_copy(update={"ingest": settings, "machine": MACHINE})


def run(params) -> dict:
    return ingest(params.ingest, params.networks.image, MACHINE, *source_folders(params.ingest), INGEST)


def shards() -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted((INGEST / "shards").glob("*.tar"))}


def test_only_what_was_rejected_is_done_again(params, capfd):
    with pytest.raises(UserError, match="ingest has not worked here yet"):
        retry(params, "ingest")
    first = run(params)
    before = shards()
    assert first["portraits"]["rejected"] == {"empty file": 1}
    Image.fromarray(FACE[:, ::-1]).save("portraits/d.png")
    for _ in range(2):
        found = retry(params, "ingest")
    # Asked twice, it is ready already.
    assert (found.again, found.kept, found.left) == ({}, 5, 2)
    capfd.readouterr()
    second = run(params)
    assert "ingest: 2 of 7 shards to do, 5 done already" in capfd.readouterr().err
    assert second["portraits"]["ok"] == 4 and second["clips"] == first["clips"]
    after = shards()
    assert {name for name in after if after[name] != before.get(name)} == {"portraits-000003.tar"}
    # The same as if all had been done.
    rows = [table(INGEST / f"{name}.parquet") for name in ("portraits", "clips")]
    retry(params, "ingest")
    Image.fromarray(FACE[:, ::-1]).save("portraits/d.png", compress_level=1)
    run(params)
    assert shards() == after
    assert [table(INGEST / f"{name}.parquet") for name in ("portraits", "clips")] == rows


def test_reasons_and_what_cannot_be_kept(params):
    run(params)
    Image.fromarray(FACE[:, ::-1]).save("portraits/a.png")
    (units_folder("ingest") / "clips-one-d03d1d.tar").unlink()
    found = retry(params, "ingest")
    assert found.again == {
        "portraits-000011": "its files have changed",
        "portraits-000003": "1 rejected",
        "clips-one-d03d1d": "its shard is gone",
        "clips-zero-991114": "1 rejected",
    }
    assert (found.kept, found.left) == (3, 0)
    other = params.ingest.model_copy(update={"min_face": 47})
    with pytest.raises(UserError, match="params or inputs are not those of the last run"):
        retry(params.model_copy(update={"ingest": other}), "ingest")
    with pytest.raises(UserError, match="train cannot be retried in parts"):
        retry(params, "train")


def test_frames_and_landmarks_of_kept_units_stay(params):
    run(params)
    frames = table(INGEST / "frames.parquet", "key")
    retry(params, "ingest")
    run(params)
    again = table(INGEST / "frames.parquet", "key")
    assert again.keys() == frames.keys()
    for key, row in frames.items():
        assert np.array_equal(row["landmarks"], again[key]["landmarks"])
