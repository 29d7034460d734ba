"""The evaluation as a whole, on a miniature run: numbers, pairs, and the same bytes again."""

import json
import shutil

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

from model.judges.identity import IdentityNet
from model.sizes import IdentitySizes
from pipeline.clips.held_out import CachedClips
from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes
from pipeline.evaluate.protocol import evaluate
from pipeline.evaluate.report import rounded
from pipeline.networks.import_weights import import_weights
from pipeline.pretrain.onnx_export import export_identity
from tests.evaluate import world as a_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return a_world.build(tmp_path_factory.mktemp("world"))


def test_every_method_has_every_number(world):
    scores = world.evaluation.scores
    common = {
        "id",
        "aed",
        "apd",
        "expression_error",
        "fid_perception",
        "response",
    }
    alone = {
        "lpips",
        "lpips_thumbnail",
        "lpips_head",
        "psnr_foreground",
        "faces_found",
    }
    for method in ("psi", "psi3d", "copy"):
        assert common | alone <= set(scores["self"][method])
        assert set(scores["cross"][method]) - {"response_face"} == common
        assert (scores["self"][method]["response"] > 0) == (method == "psi")
    assert scores["self"]["copy"]["id"] == pytest.approx(1.0, abs=1e-5)
    assert {"id", "expression_error", "faces_found"} <= set(scores["self"]["real"])
    assert -1 <= scores["consistency"]["psi"] <= 1


def test_what_equals_the_truth_has_no_error(world):
    """The miniature's true views are its frames, and its fitted labels the true ones."""
    scores = world.evaluation.scores
    assert scores["novel_views"]["copy"] == {
        "psnr_foreground": 60.0,
        "lpips": 0.0,
        "lpips_thumbnail": pytest.approx(32.0),
    }
    response = scores["response"]
    assert response["true_rms"] > 0
    assert response["rms"] > 0
    assert -1 <= response["agreement"] <= 1
    assert scores["ingest"]["landmark_error"] == pytest.approx(0.0, abs=1e-5)
    nothing = {"rotation_degrees": 0.0, "jaw_degrees": 0.0, "vertices_mm": 0.0}
    assert scores["fit_flame"] == pytest.approx(nothing, abs=0.05)


def test_pairs(world):
    world.report()
    pairs = json.loads((world.out / "pairs.json").read_text())
    assert len(pairs["self"]) == 3 * 2
    assert len(pairs["cross"]) == 2
    for source, driving in pairs["self"]:
        assert source.endswith("000000")
        assert source != driving
        assert source[:2] == driving[:2]
    for source, driving in pairs["cross"]:
        assert source[:2] != driving[:2]
    for source, drivers in pairs["frontal"]:
        assert len(drivers) == len({key[:2] for key in drivers} - {source[:2]}) == 2


def test_the_table_of_frames_is_ordered_by_how_far_the_head_turned(world):
    world.report()
    table = pyarrow.csv.read_csv(world.out / "frames.csv")
    assert table.column_names[:3] == ["turned", "driving", "lpips_psi"]
    assert len(table) == 6
    turned = table["turned"].to_pylist()
    assert turned == sorted(turned)
    assert turned[0] > 0
    # The mean of a column is the number of the evaluation.
    aed = world.evaluation.scores["self"]["copy"]["aed"]
    assert np.mean(table["aed_copy"]) == pytest.approx(aed, abs=1e-6)


@pytest.mark.slow
def test_again_gives_the_same_bytes(world):
    # The state of the global generator must not matter.
    torch.rand(3)
    evaluation = a_world.run(world.folder, world.params)
    again = a_world.World(world.folder, world.params, evaluation, "again")
    assert rounded(again.evaluation.scores) == rounded(world.evaluation.scores)
    world.report()
    again.report()
    for name in ("pairs.json", "frames.csv", "report.html", "sheet.jpg"):
        assert (world.out / name).read_bytes() == (again.out / name).read_bytes()


def test_without_the_truth_what_needs_it_is_left_out(tmp_path):
    world = a_world.build(tmp_path, truth=False)
    assert set(world.evaluation.scores) == {"self", "cross", "consistency"}
    assert "expression_error" not in world.evaluation.scores["self"]["psi"]
    world.report(videos=0)
    tables, _, _ = (world.out / "report.html").read_text().partition("What the columns mean")
    assert "Self-reenactment" in tables
    assert "truth" not in tables


def test_no_test_clip_ends_in_a_clear_message(world, tmp_path):
    index = pq.read_table(world.folder / "views/index.parquet")
    training = index.filter(np.array(index["split"]) == "train")
    pq.write_table(training, tmp_path / "index.parquet")
    (tmp_path / "shards").symlink_to(world.folder / "views/shards")
    with pytest.raises(UserError, match="no test clip"):
        CachedClips(tmp_path, "emot", "test")


def test_frames_marked_as_bad_are_not_measured(world):
    whole = CachedClips(world.folder / "views", "emot", "test")
    first = next(iter(whole.clips))
    source, *others = whole.clips[first]
    train = pq.read_table(world.folder / "views/index.parquet", filters=[("split", "=", "train")])
    clips = CachedClips(world.folder / "views", "emot", "test", bad=[source, train["key"][0].as_py()])
    assert clips.clips == whole.clips | {first: others}
    assert clips.marked_bad == 1
    assert whole.marked_bad == 0
    few = CachedClips(world.folder / "views", "emot", "test", most=2)
    assert list(few.clips) == list(whole.clips)[:2]


def test_missing_weights_end_in_a_clear_message(world, tmp_path):
    places = a_world.places(world.folder)
    with pytest.raises(UserError, match="synthesizers"):
        evaluate(world.params, **(places | {"psi": tmp_path}))


def test_published_face_recognition_measures_under_its_own_name(world, tmp_path):
    """It takes the place of the network that the loss sees."""
    network = IdentityNet(IdentitySizes((1, 1), 4, 512)).eval()
    export_identity(network, tmp_path / "w600k.onnx")
    import_weights(tmp_path / "w600k.onnx", tmp_path / "official")
    pretrain = world.params.pretrain.model_copy(update={"official": str(tmp_path / "official")})
    params = world.params.model_copy(update={"pretrain": pretrain})
    evaluation = a_world.run(world.folder, params)
    found = evaluation.scores["self"]["psi"]
    own = world.evaluation.scores["self"]["psi"]
    assert found.keys() - own.keys() == {"id_arcface"}
    assert own.keys() - found.keys() == {"id"}
    assert evaluation.scores["self"]["copy"]["id_arcface"] == pytest.approx(1.0, abs=1e-5)
    assert evaluation.scores["consistency"].keys() == {"psi_arcface"}
    # What does not depend on it is the same.
    assert found["lpips"] == own["lpips"]
    other = a_world.World(world.folder, params, evaluation, "published")
    other.report(videos=0)
    told = json.loads((other.out / "instruments.json").read_text())
    assert told.keys() == {"arcface"}
    assert "ID (ArcFace)" in (other.out / "report.html").read_text()


def test_every_two_people_meet_and_fid_knows_the_pairs(world):
    section = world.params.evaluate
    changed = section.model_copy(update={"cross": "all", "cross_pairs": 6, "fid": "pairs"})
    evaluation = a_world.run(world.folder, world.params.model_copy(update={"evaluate": changed}))
    met = [(source[:2], driving[:2]) for source, driving in evaluation.cross_keys]
    assert met[:3] == [("c0", "c1"), ("c1", "c2"), ("c2", "c0")]
    assert len(set(met)) == 6
    # A driver gives an earlier frame in the first round than in the second.
    frames = [int(driving[-6:]) for _, driving in evaluation.cross_keys]
    assert frames == [1, 1, 1, 3, 3, 3]
    # The real frames of the pairs are what FID compares with.
    own = world.evaluation.scores["self"]["psi3d"]
    found = evaluation.scores["self"]["psi3d"]
    assert found["fid_perception"] != own["fid_perception"]
    assert found["lpips"] == own["lpips"]


def test_a_damaged_recognition_network_ends_in_a_clear_message(world, tmp_path):
    shutil.copytree(world.folder / "perception", tmp_path, dirs_exist_ok=True)
    write_bytes(tmp_path / "identity.onnx", b"no network")
    places = a_world.places(world.folder)
    with pytest.raises(UserError, match=r"identity.onnx is no readable .* Run `dvc repro"):
        evaluate(world.params, **(places | {"perception": tmp_path}))
