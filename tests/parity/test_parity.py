"""The published layouts, every parity fixture through the code of `psi4d parity`, fixtures that are no good.

The fixtures here are thinned (section 6 of the README beside them); the command takes full ones as well.
"""

import json
import math
import sys
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from model.adversary.discriminator import Discriminator
from model.fast.psi import FastPsi
from model.genhead import GenHead
from model.head.flame import Flame
from model.head.flame_file import EMBEDDING
from model.instruments.arcface import RESNETS
from model.instruments.deep3d import Deep3D
from model.instruments.emotion import EmotionNet
from model.instruments.inception import FidInception
from model.instruments.syncnet import SyncNet
from model.judges.identity import IdentityNet
from model.psi.motion_encoder import MotionEncoder
from model.psi.network import Psi
from model.sizes import Sizes
from pipeline.cli import main
from pipeline.core.errors import UserError
from pipeline.geometry.standin import standin
from pipeline.parity.cases import CASES
from pipeline.parity.check import EXACT, HALF, check, check_fixture
from pipeline.parity.file import (
    Stored,
    read_fixture,
    relative_error,
    write_fixture,
)
from pipeline.parity.fixture import Fixture
from pipeline.parity.instrument_cases import INSTRUMENT_CASES, rule_check_instruments
from pipeline.parity.numbers import NumberRule, camera
from pipeline.parity.psi_cases import PSI_CASES, forget_psi, made_psi
from tests.parity.verdicts import verdicts, with_verdict, write_rule_check
from tests.published import INSTRUMENTS, MANIFESTS, PARITY

ROOT = Path(__file__).parents[2]
LANDMARKS = {"flame.landmarks3d", "flame.landmarks2d_512"}
# Entries of the official checkpoints that we leave out: data of FLAME, a statistic that the official training
# loop hangs on, and the people of VGGFace2.
FOREIGN = ("deformer.", "dataset_label_std", "backbone.fc.")
NETWORKS = {
    "psi": (Psi, 224_766_123),  # of Psi_3d as well
    "discriminator": (Discriminator, 31_360_000),
    "genhead_generator": (lambda sizes: GenHead(sizes, Flame(standin())), None),
    "pdfgc_motion_encoder": (lambda sizes: MotionEncoder(sizes.motion), None),
    "arcface_iresnet18": (lambda sizes: IdentityNet(sizes.identity), None),
    "arcface_iresnet50": (lambda sizes: IdentityNet(RESNETS["iresnet50"]), 43_590_848),
    "deep3d_resnet50": (lambda sizes: Deep3D(), None),
    "fid_inception": (lambda sizes: FidInception(), None),
    "emoca_emotion_resnet50": (lambda sizes: EmotionNet(), None),
    "syncnet_v2": (lambda sizes: SyncNet(), None),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_published_layout(name: str) -> None:
    build, count = NETWORKS[name]
    with torch.device("meta"):
        network = build(Sizes())
    ours = {}
    for key, value in network.state_dict().items():
        dtype = str(value.dtype).removeprefix("torch.")
        ours[key] = (list(value.shape), dtype)
    manifest = MANIFESTS / f"{name}.json"
    wanted = {}
    for key, shape, dtype in json.loads(manifest.read_text()):
        if not key.startswith(FOREIGN):
            wanted[key] = (shape, dtype)
    assert ours == wanted
    found = sum(p.numel() for p in network.parameters())
    assert count in (None, found)


def test_every_manifest_and_fixture_is_met() -> None:
    manifests = {path.stem for path in MANIFESTS.glob("*.json")}
    fixtures = {path.stem for folder in (PARITY, INSTRUMENTS) for path in folder.glob("*.npz")}
    assert manifests == set(NETWORKS)
    assert fixtures == set(CASES)
    assert Sizes().motion.dims == 548


@pytest.fixture(scope="module", autouse=True)
def _free_psi():
    yield
    forget_psi()
    fast_psi.cache_clear()


SLOW = {"discriminator", "superresolution", *PSI_CASES, *INSTRUMENT_CASES} - {"rule_check_instruments"}
MARKED = []
for case in sorted(CASES):
    marks = pytest.mark.slow if case in SLOW else ()
    MARKED.append(pytest.param(case, marks=marks))


@pytest.mark.parametrize("name", MARKED)
def test_fixture(name: str) -> None:
    folder = INSTRUMENTS if name in INSTRUMENT_CASES else PARITY
    path = folder / f"{name}.npz"
    lines = check_fixture(path, NumberRule())
    good = ("pass", "input", "skipped")
    bad = [str(line) for line in lines if line.verdict not in good]
    assert not bad
    found = {line.name: line.verdict for line in lines}
    assert with_verdict(found, "pass")
    # The embedding of FLAME's landmarks is not ours to publish.
    assert with_verdict(found, "skipped") <= LANDMARKS


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scale"), [("psi_v2", 1.0), ("psi_3d", 0.0)])
def test_the_fast_path_meets_the_fixtures(name: str, scale: float) -> None:
    rule = NumberRule()
    sizes = Sizes()
    stored = read_fixture(PARITY / f"{name}.npz")
    fast = fast_psi()
    dims = sizes.motion.dims
    own = rule.tensor("motion_app", (1, dims))
    driving = rule.tensor("motion", (1, dims))
    portrait = rule.image("img_app", sizes.image)
    source = fast.source(portrait, own, scale)
    planes = fast.planes(source, driving)
    view = camera()[None]
    picture = fast.render(planes, source, view)
    final = picture.image[0]
    transmittance = 1 - picture.opacity[0]
    found = {
        "planes": planes.triplanes_B3CRR[0, :, :, ::8, ::8],
        "feature": picture.feature[0],
        "transmittance": transmittance,
        "depth": picture.depth[0],
        "image": picture.raw[0],
        "image_sr": final,
        "image_sr_exact": final[:, ::8, ::8],
    }
    compared = found.keys() & stored.keys()
    assert len(compared) >= 6
    for key in compared:
        wanted = stored[key]
        ours = found[key].reshape(wanted.shape)
        error = wanted.error(ours.numpy())
        bound = HALF if wanted.values.dtype == np.float16 else EXACT
        assert error <= bound, key


@lru_cache(maxsize=1)
def fast_psi() -> FastPsi:
    """Both fixtures of the fast path are of the same weights, which are those of the fixtures of Psi, too."""
    return FastPsi(made_psi(NumberRule()))


def slow_unit(key: str, count: int) -> list[float]:
    """The number rule with Python's integers, as the README beside the fixtures words it."""
    numbers = []
    # Unsigned numbers of 64 bits begin again at 0.
    whole = 2**64
    first = zlib.crc32(key.encode()) << 32
    for i in range(count):
        s = (first + i + 0x9E3779B97F4A7C15) % whole
        s ^= s >> 30
        s = s * 0xBF58476D1CE4E5B9 % whole
        s ^= s >> 27
        s = s * 0x94D049BB133111EB % whole
        s ^= s >> 31
        upper = s >> 40
        share = (upper + 0.5) * 2**-24
        numbers.append((share - 0.5) * math.sqrt(12))
    return numbers


def test_the_number_rule_and_its_salt() -> None:
    plain = np.float32(slow_unit("test", 50))
    salted = np.float32(slow_unit("a:test", 50))
    rule = NumberRule()
    found = NumberRule("a:").unit("test", (5, 10))
    assert np.array_equal(rule.unit("test", (50,)), plain)
    assert np.array_equal(found.ravel(), salted)
    # More than are made at once.
    long = rule.unit("test", (1 << 20 | 3,))
    assert np.array_equal(long[:50], plain)
    assert abs(long.mean()) < 1e-3
    assert abs(long.std() - 1) < 1e-3
    last = np.unique(long[-50:])
    assert len(last) == 50
    with pytest.raises(ValueError, match="says nothing about"):
        NumberRule().weight("decoder.scale", (3,), False)


def test_fixtures_of_other_keys(tmp_path: Path) -> None:
    path = write_rule_check(tmp_path, "mine/")
    own = verdicts(path, "mine/")
    assert set(own.values()) == {"pass", "input"}
    # Without the salt only what no rule makes is the same.
    without = verdicts(path)
    assert with_verdict(without, "pass") == {"rule_check.camera_default", "rule_check.camera_b"}
    assert without["rule_check.first4"] == "fail"
    assert without["rule_check.unit_test"] == "fail"


def test_inputs_and_weights_of_the_instruments_follow_the_salt(tmp_path: Path) -> None:
    found = rule_check_instruments(NumberRule("mine/"), Fixture(tmp_path, {}))
    path = tmp_path / "rule_check_instruments.npz"
    np.savez(path, **{name: np.asarray(value) for name, value in found.items()})
    assert set(verdicts(path, "mine/").values()) == {"pass"}
    # Nothing of them stays the same with other keys.
    assert set(verdicts(path, "other/").values()) == {"fail"}


def test_a_wrong_array_is_named(tmp_path: Path) -> None:
    right = NumberRule().unit("test", (16,))
    changes = {
        "off": right * 1.001,
        "of another shape": right[:5],
        "no number": np.full(16, np.nan, np.float32),
        "text": np.array(["a"] * 16),
        "missing": None,
    }
    for why, unit_test in changes.items():
        found = verdicts(write_rule_check(tmp_path, unit_test=unit_test))
        assert with_verdict(found, "fail") == {"rule_check.unit_test"}, why

    def verdict_of(name: str, array: np.ndarray) -> str:
        path = write_rule_check(tmp_path, **{name: array})
        return verdicts(path)[f"rule_check.{name}"]

    assert verdict_of("unit_test", right * 1.00001) == "pass"
    # What is stored in half precision need not agree to more than that.
    half = (right * 1.001).astype(np.float16)
    assert verdict_of("unit_test", half) == "pass"
    assert verdict_of("camera_b", camera().numpy()) == "fail"
    assert verdict_of("more", right) == "unknown"


def test_the_files_are_small() -> None:
    paths = [*PARITY.iterdir(), *INSTRUMENTS.iterdir(), *MANIFESTS.iterdir()]
    sizes = [path.stat().st_size for path in paths]
    assert max(sizes) < 300_000
    assert sum(sizes) < 2_000_000


def test_a_difference_of_two_items_is_compared_too(tmp_path: Path) -> None:
    """Both items are off by little, in opposite directions."""
    name, key = "rule_check_instruments", "pair_face224_every32"
    arrays = read_fixture(INSTRUMENTS / f"{name}.npz")
    pair = arrays[key].values.astype(np.float64)
    first, second = pair
    apart = np.stack([second - first, first - second])
    step = 0.8 * EXACT * np.linalg.norm(pair) / np.linalg.norm(apart)
    changed = pair + step * apart
    assert relative_error(pair, changed) < EXACT
    arrays[key] = Stored(changed)
    path = tmp_path / f"{name}.npz"
    write_fixture(path, arrays)
    found = verdicts(path)
    assert with_verdict(found, "fail") == {f"{name}.{key}"}


def test_landmarks_need_a_file_of_others(tmp_path: Path) -> None:
    """Their embedding belongs to FLAME.

    Without it they are not compared, with another one they differ, a damaged one is named.
    """
    folder = tmp_path / "fixtures"
    folder.mkdir()
    path = folder / "flame.npz"
    path.write_bytes((PARITY / "flame.npz").read_bytes())
    found = verdicts(path)
    assert with_verdict(found, "skipped") == LANDMARKS
    assert set(found.values()) == {"pass", "skipped"}
    embedding = {
        "full_lmk_faces_idx": np.arange(70)[None],
        "full_lmk_bary_coords": np.full((1, 70, 3), 1 / 3),
    }
    # As the official repository stores it: a dict in an array of one object.
    np.save(folder / EMBEDDING, embedding, allow_pickle=True)
    found = verdicts(path)
    assert with_verdict(found, "fail") == LANDMARKS
    assert set(found.values()) == {"pass", "fail"}
    (folder / EMBEDDING).write_bytes(b"damaged")
    (line,) = check_fixture(path, NumberRule())
    assert line.verdict == "fail"
    assert EMBEDDING in line.detail


def test_fixtures_that_are_no_good_take_one_line_each(tmp_path: Path) -> None:
    whole = write_rule_check(tmp_path).read_bytes()
    draw = np.random.default_rng(0)
    path = tmp_path / "rule_check.npz"
    half = whole[: len(whole) // 2]
    hole = b"\0" * 400
    with_hole = whole[:40] + hole + whole[440:]
    for damaged in (b"", b"text", half, with_hole):
        path.write_bytes(damaged)
        assert "fail" in verdicts(path).values()
    # A flipped bit may be one that nothing reads; what it must not do is raise.
    for _ in range(20):
        data = bytearray(whole)
        place = draw.integers(len(data))
        data[place] ^= 1 << draw.integers(8)
        path.write_bytes(bytes(data))
        verdicts(path)
    write_rule_check(tmp_path, keys=np.array(["no.such.key"]))
    (tmp_path / "preprocess.npz").write_bytes(whole)
    three = np.zeros(3)
    objects = np.array([{}], object)
    np.savez(tmp_path / "psi_v2_posed.npz", grid24_offset=three)
    np.save(tmp_path / "array.npy", three)
    (tmp_path / "array.npy").rename(tmp_path / "renderer.npz")
    np.savez(tmp_path / "arcface_iresnet18.npz", embedding=objects)
    (tmp_path / "genhead.npz").mkdir()
    (tmp_path / "other.npz").write_bytes(whole)
    lines = list(check(tmp_path, NumberRule()))
    names = [line.name for line in lines]
    assert names == sorted(path.stem for path in tmp_path.iterdir())
    bad = [line.name for line in lines if line.verdict == "fail"]
    assert len(bad) == 6
    assert set(names) - set(bad) == {"other"}
    for line in lines:
        assert line.detail
        assert "\n" not in str(line)


def test_a_folder_without_fixtures_is_an_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=str(folder)):
            list(check(folder, NumberRule()))


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """What the command ends with: a status, or the one line for the user."""
    monkeypatch.setattr(sys, "argv", ["psi4d", "parity", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_rule_check(tmp_path / "fixtures", "other ")
    folder = str(path.parent)
    assert not run_command(monkeypatch, folder, "--salt", "other ")
    told = capsys.readouterr()
    assert told.err == ""
    assert "all 7 arrays agree" in told.out
    assert len(told.out.splitlines()) == 9
    assert "rule_check.first4" in told.out
    # Without the salt only the two cameras agree.
    bad = run_command(monkeypatch, folder)
    told = capsys.readouterr()
    assert told.out.count("fail") == 5
    assert bad == "psi4d: 5 of 7 comparisons above failed or could not be made."
    empty = run_command(monkeypatch, str(tmp_path))
    assert "no fixture" in empty
    assert len(empty.splitlines()) == 1
