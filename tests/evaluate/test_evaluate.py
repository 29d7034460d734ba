"""The evaluation as a whole, on a miniature run: numbers, pairs, pictures, and the same bytes again."""

import json

import av
import cv2
import numpy as np
import pytest
import torch

from model.judges.identity import IdentityNet
from model.judges.regressor import Regressor
from model.judges.trunk import Trunk
from model.weights import save_weights
from pipeline.clips.held_out import CachedClips
from pipeline.core.errors import UserError
from pipeline.evaluate.protocol import Evaluation, evaluate, frontal_camera, rotation_between, rounded
from pipeline.evaluate.report import section, write_pictures
from pipeline.geometry.camera import look_at
from pipeline.pretrain.onnx_export import export_identity
from tests.support import small_run


def perception(folder, sizes) -> None:
    """Networks as they are initialised."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {"identity": IdentityNet(sizes).eval(), "trunk": Trunk(), "regressor": Regressor()}
    for name, network in networks.items():
        save_weights(folder / f"{name}.safetensors", network.state_dict(), {"sizes": vars(sizes)})
    export_identity(networks["identity"], folder / "identity.onnx")


def run(folder, own, out) -> Evaluation:
    places = {
        name: folder / name for name in ("ingest", "labels", "perception", "psi3d", "views", "psi", "truth")
    }
    return evaluate(own, out=folder / out, **places)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder, own = tmp_path_factory.mktemp("world"), small_run.params()
    small_run.build(folder, own)
    perception(folder / "perception", own.networks.identity)
    return folder, own, run(folder, own, "out")


def test_every_method_has_every_number(world):
    _, _, evaluation = world
    scores = evaluation.scores
    common = {"id", "aed", "apd", "expression_error", "fid_perception", "response"}
    alone = {"lpips", "lpips_thumbnail", "lpips_head", "psnr_foreground", "faces_found"}
    for method in ("psi", "psi3d", "copy"):
        assert common | alone <= set(scores["self"][method])
        assert set(scores["cross"][method]) - {"response_face"} == common
        assert (scores["self"][method]["response"] > 0) == (method == "psi")
    assert scores["self"]["copy"]["id"] == pytest.approx(1.0, abs=1e-5)
    assert {"id", "expression_error", "faces_found"} <= set(scores["self"]["real"])
    # The miniature's views are the frames themselves.
    assert scores["novel_views"]["copy"] == {"psnr_foreground": 60.0, "lpips": 0.0, "lpips_thumbnail": 32.0}
    assert (
        scores["response"]["true_rms"] > 0
        and scores["response"]["rms"] > 0
        and -1 <= scores["response"]["agreement"] <= 1
    )
    assert scores["ingest"]["landmark_error"] == pytest.approx(0.0, abs=1e-5)
    assert scores["fit_flame"] == pytest.approx(
        {"rotation_degrees": 0.0, "jaw_degrees": 0.0, "vertices_mm": 0.0}, abs=0.05
    )
    assert -1 <= scores["consistency"]["psi"] <= 1


def test_pairs(world):
    folder, _, _ = world
    pairs = json.loads((folder / "out/pairs.json").read_text())
    assert len(pairs["self"]) == 3 * 2 and len(pairs["cross"]) == 2
    for source, driving in pairs["self"]:
        assert source.endswith("000000") and source != driving and source[:2] == driving[:2]
    for source, driving in pairs["cross"]:
        assert source[:2] != driving[:2]
    for source, drivers in pairs["frontal"]:
        assert len(drivers) == len({key[:2] for key in drivers} - {source[:2]}) == 2


def test_the_table_for_plots_is_ordered_by_how_far_the_head_turned(world):
    folder, _, _ = world
    lines = [line.split(",") for line in (folder / "out/frames.csv").read_text().splitlines()]
    assert lines[0][:3] == ["turned", "driving", "lpips_psi"] and len(lines) == 1 + 6
    turned = [float(line[0]) for line in lines[1:]]
    assert turned == sorted(turned) and turned[0] > 0


def test_pictures(world):
    folder, _, evaluation = world
    write_pictures(evaluation, views=2, videos=3, sheet=folder / "sheet.jpg", out=folder / "out")
    sheet = cv2.imdecode(np.frombuffer((folder / "sheet.jpg").read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert sheet.shape == (5 * (18 + 128), 6 * 128, 3)
    assert (folder / "sheet.jpg").stat().st_size < 400_000
    films = sorted((folder / "out/videos").iterdir())
    assert len(films) == 3
    with av.open(str(films[0])) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == small_run.FRAMES and pictures[0].shape == (128 + 18, 4 * 128, 3)
    page = (folder / "out/report.html").read_text()
    assert "http://" not in page and "https://" not in page  # opens without a network
    assert page.count("data:video/mp4") == 3 and "Self-reenactment" in page and "Psi_3d, no motion" in page


@pytest.mark.slow
def test_again_gives_the_same_bytes(world):
    folder, own, evaluation = world
    torch.rand(3)  # the global generator must not matter
    again = run(folder, own, "again")
    assert again.scores == evaluation.scores
    for part, result in (("out", evaluation), ("again", again)):
        write_pictures(result, views=1, videos=1, sheet=folder / f"{part}.jpg", out=folder / part)
    assert (folder / "out.jpg").read_bytes() == (folder / "again.jpg").read_bytes()
    for name in ("pairs.json", "frames.csv", "report.html"):
        assert (folder / "out" / name).read_bytes() == (folder / "again" / name).read_bytes()


def test_without_the_truth_what_needs_it_is_left_out(tmp_path):
    own = small_run.params()
    small_run.build(tmp_path, own, truth=False)
    perception(tmp_path / "perception", own.networks.identity)
    evaluation = run(tmp_path, own, "out")
    assert set(evaluation.scores) == {"self", "cross", "consistency"}
    assert "expression_error" not in evaluation.scores["self"]["psi"]
    write_pictures(evaluation, views=1, videos=0, sheet=tmp_path / "sheet.jpg", out=tmp_path / "out")
    assert "truth" not in (tmp_path / "out/report.html").read_text().split("What the columns mean")[0]


def test_no_test_clip_ends_in_a_clear_message(world):
    folder, _, _ = world
    with pytest.raises(UserError, match="no test clip"):
        (folder / "other").mkdir()
        import pyarrow.parquet as pq

        table = pq.read_table(folder / "views/index.parquet")
        pq.write_table(table.filter(np.array(table["split"]) == "train"), folder / "other/index.parquet")
        (folder / "other/shards").symlink_to(folder / "views/shards")
        CachedClips(folder / "other", "emot", "test")


def test_missing_weights_end_in_a_clear_message(world):
    folder, own, _ = world
    with pytest.raises(UserError, match="synthesizers"):
        evaluate(
            own,
            out=folder / "x",
            **{name: folder / name for name in ("ingest", "labels", "perception", "psi3d", "views", "truth")},
            psi=folder / "nothing",
        )


def test_cameras():
    assert rotation_between(frontal_camera(), look_at(0.0, 0.0, 4.0, np.zeros(3))) == pytest.approx(
        0.0, abs=1e-3
    )
    assert rotation_between(
        look_at(0.5, 0.0, 4.0, np.zeros(3)), look_at(-0.5, 0.0, 4.0, np.zeros(3))
    ) == pytest.approx(np.degrees(1.0), abs=1e-3)


def test_numbers_are_rounded_and_what_is_not_finite_left_out():
    assert rounded({"a": {"b": np.float64(1.23456789), "c": float("nan")}}) == {"a": {"b": 1.234568}}


def test_best_value_of_each_column_is_marked():
    text = section(
        "self",
        "Title",
        "Note",
        {"psi": {"lpips": 0.2, "id": 0.8}, "copy": {"lpips": 0.3, "id": 1.0}, "real": {"id": 2.0}},
    )
    assert (
        '<td class="best">0.2000</td>' in text
        and '<td class="best">1.0000</td>' in text
        and '<td class="best">2' not in text
    )
