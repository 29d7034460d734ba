"""The instruments of papers on pictures, in their published sizes, with weights that mean nothing."""

from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch

from model.head.flame import Flame
from model.instruments.syncnet import FPS
from pipeline.clips.held_out import CachedClips
from pipeline.evaluate.instruments import FidPerception, Instruments
from pipeline.evaluate.kept import Kept
from pipeline.evaluate.legend import COLUMNS
from pipeline.evaluate.lips import lips
from pipeline.evaluate.methods import Synthesizers
from pipeline.evaluate.published import Faces, PublishedInstruments
from pipeline.geometry.head_model import load
from pipeline.networks.instruments import INSTRUMENTS
from pipeline.networks.weights import save_weights
from tests.evaluate import world
from tests.evaluate.test_lips import FRAMES, clip_with_sound
from tests.support import small_run

CPU = torch.device("cpu")


def save_instrument(folder: Path, name: str) -> None:
    """An instrument as `psi4d import` would leave it, with the random weights of its layers."""
    torch.manual_seed(0)
    network = INSTRUMENTS[name].build()
    origin = {"file": f"{name}.pth", "sha256": "0" * 64}
    facts = {"network": name, "instrument": name, "imported": origin}
    save_weights(folder / f"{name}.safetensors", network.state_dict(), facts)


def faces(seed: int) -> Faces:
    """Two noisy pictures of 64 pixels with the landmarks of a face."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1
    mesh = np.array(small_run.landmarks()).reshape(478, 3)
    points = torch.from_numpy(small_run.landmarks_70(mesh)).float()
    return Faces(images, points.expand(2, -1, -1))


@pytest.mark.slow
def test_distances_in_all_kinds(tmp_path):
    for name in ("deep3d", "emotion"):
        save_instrument(tmp_path, name)
    instruments = PublishedInstruments(tmp_path, CPU)
    assert instruments.has("deep3d")
    assert not instruments.has("arcface")
    assert instruments.inception is None
    first, second = faces(0), faces(1)
    nothing = instruments.distances(first, first)
    assert all(np.allclose(values, 0, atol=1e-6) for values in nothing.values())
    found = instruments.distances(first, second)
    assert found.keys() == nothing.keys()
    # The report knows what each is called, and the name says which network it is of.
    assert found.keys() <= COLUMNS.keys()
    assert all(name.startswith(("aed_deep3d", "apd_deep3d", "aed_f_")) for name in found)
    assert all((values > 0).all() and values.shape == (2,) for values in found.values())
    # A mean square is at least the square of the mean; the angles' is in thousandths.
    assert (found["aed_deep3d_mean_square"] >= found["aed_deep3d_mean_abs"] ** 2).all()
    assert (found["apd_deep3d_mean_square"] / 1000 >= found["apd_deep3d_mean_abs"] ** 2).all()
    length = found["aed_f_euclid"] ** 2 / 2048
    assert np.allclose(length, found["aed_f_mean_square"])


@pytest.mark.slow
def test_what_fid_of_inception_is_made_of(tmp_path):
    save_instrument(tmp_path, "inception")
    network = PublishedInstruments(tmp_path, CPU).inception
    noise = torch.cat([faces(seed).images for seed in range(2)])
    real = (127.5 * (noise + 1)).round() / 127.5 - 1
    features = network(real)
    assert features.shape == (4, 2048)
    # Pictures are rounded to bytes, as those that FID reads from files are: a seventh of a level is nothing.
    assert torch.equal(network((real + 1e-3).clamp(-1, 1)), features)
    # The distance is in double precision, the network stays as it is.
    fid = FidPerception("fid", network, CPU)
    fid.take(real)
    results = fid.results()
    results.add(real)
    assert results.count == 4
    assert features.dtype == torch.float32
    assert network(real).dtype == torch.float32


@pytest.mark.slow
def test_lips_are_measured_where_a_clip_has_sound(tmp_path, monkeypatch):
    monkeypatch.setattr(small_run, "FRAMES", FRAMES)
    monkeypatch.setattr(small_run, "FPS", FPS)
    own = small_run.params()
    small_run.build(tmp_path, own, truth=False)
    world.judges(tmp_path / "perception", own.networks.identity)
    pretrain = own.pretrain.model_copy(update={"official": str(tmp_path)})
    own = own.model_copy(update={"pretrain": pretrain})
    flame = Flame(load(own.flame.model))
    synthesizers = Synthesizers(own.networks, tmp_path / "psi", tmp_path / "psi3d", flame)
    clips = CachedClips(tmp_path / "views", "emot", "test")

    def found() -> dict[str, dict[str, float]]:
        instruments = Instruments(own, tmp_path / "perception", None)
        kept = Kept(Path(mkdtemp(dir=tmp_path)))
        return lips(instruments, synthesizers, clips, tmp_path / "ingest", tmp_path / "videos", kept)

    assert found() == {}
    save_instrument(tmp_path, "syncnet")
    # Without videos there is no sound.
    assert found() == {}
    (tmp_path / "videos").mkdir()
    clip_with_sound(tmp_path / "videos/c1.mp4")
    scores = found()
    assert scores.keys() == {"psi", "cross", "real"}
    for score in scores.values():
        assert score["sync_distance"] > 0
        assert score["sync_confidence"] >= 0
    assert scores["psi"] != scores["real"]
    assert scores["psi"] != scores["cross"]
