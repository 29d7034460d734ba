"""render_genhead on networks that know nothing: what is drawn and written, and that inputs decide it."""

import shutil

import numpy as np
import pytest
import torch

from model.head.flame import Flame
from model.weights import load_weights
from pipeline.config.scales import scale_params
from pipeline.core.errors import UserError
from pipeline.core.pictures import to_uint8
from pipeline.core.seeds import rng
from pipeline.geometry import head_model
from pipeline.geometry.camera import look_at, project
from pipeline.geometry.label import Label, head_vertices, landmarks
from pipeline.render.genhead import Pools, draw_head, pool_folder, render_genhead, sample_points
from pipeline.render.landmarks import view_landmarks
from pipeline.render.position_map import EXTENT, position_map
from pipeline.store.samples import Form, Heads
from pipeline.store.shards import ShardReader
from pipeline.train.synthetic_batches import SyntheticHeads, Wanted, wanted_in
from tests.render.stages import SIZES, heads, params_with
from tests.support.folders import checksums
from tests.support.render_inputs import inputs, label, write_labels

__all__ = ["inputs"]  # the fixture

APPEARANCE = slice(Label.SHAPE.start, Label.EXPRESSION.stop)


@pytest.fixture(autouse=True)
def own_scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def row_of(values: np.ndarray, table: np.ndarray) -> int:
    """The first row of a table that has these values, or -1."""
    is_equal = (table == values).all(1)
    if not is_equal.any():
        return -1
    return int(is_equal.argmax())


def test_heads(inputs, tmp_path):
    metrics = heads(inputs, tmp_path / "out")
    assert metrics["heads"] == 5
    assert metrics["images"] == 15
    assert metrics["shards"] == 3
    assert 0.1 < metrics["foreground"] <= 1
    reader = ShardReader(tmp_path / "out")
    # Heads are counted in their keys.
    numbers = [int(key.rpartition("-")[2]) for key in reader]
    assert numbers == list(range(5))
    sizes = {
        "image": SIZES.image,
        "rays": SIZES.rays,
        "views": 3,
        "depth": SIZES.rays,
        "rows": 3 * SIZES.rays,
        "points": 40,
        "channels": SIZES.plane_channels,
    }
    for key in reader:
        sample = reader.read(key)
        names = []
        for field in Heads.fields().values():
            for number, (name, form) in enumerate(field.forms(sizes)):
                values = field.array(sample, number)
                found = Form(values.dtype.name, values.shape)
                assert found == form
                assert np.isfinite(values).all()
                names.append(name)
        assert sorted(names) == sorted(sample)
        own = Heads.label.array(sample)
        cameras = Heads.cameras.array(sample)
        first = cameras[0]
        assert np.array_equal(own[Label.CAMERA], first)
        # The camera has the rotation of the head.
        assert not own[Label.NECK].any()


def test_portraits_among_the_heads(inputs, tmp_path):
    """View 0 of each is the photo with what is known of it."""
    heads(inputs, tmp_path / "out", portrait_share=1.0)
    weights, _ = load_weights(inputs / "genhead/portraits.safetensors")
    known = {name: tensor.numpy() for name, tensor in weights.items()}
    reader = ShardReader(tmp_path / "out")
    for key in reader:
        assert key.startswith("photo-")
        sample = reader.read(key)
        camera = Heads.cameras.array(sample)[0]
        row = row_of(camera, known["camera"])
        view = Heads.view.array(sample, 0)
        assert np.array_equal(view, known["image"][row])
        # The opacities of all views lie below each other in one picture.
        (opacity,) = known["opacity"][row]
        opacities = Heads.opacity.array(sample)
        of_photo = opacities[: SIZES.rays]
        assert np.array_equal(of_photo, 255 * opacity)
        depth = Heads.depth.array(sample)[0]
        assert (depth[opacity > 0] == 4.0).all()


def test_geometry_is_kept_where_it_is_used(inputs, tmp_path):
    heads(inputs, tmp_path / "all")
    heads(inputs, tmp_path / "some", geometry_share=0.4)
    everything, some = ShardReader(tmp_path / "all"), ShardReader(tmp_path / "some")
    whole = [len(Heads.points.array(some[key])) > 0 for key in some]
    # Two of five heads, evenly spread; the others are the same but for that.
    assert whole == [False, False, True, False, True]
    first = some.keys()[0]
    for name in ("view1.png", "uv1.png", "opacity.png", "label.npy"):
        assert some.read(first, name) == everything.read(first, name)
    assert Heads.depth.array(some[first]).shape == (3, 0, 0)
    # At the published numbers (facts 4.2) geometry is wanted to 400,000 images, the map from a million on.
    paper = scale_params("paper").train_psi3d
    found = [wanted_in(paper, images // paper.batch) for images in (0, 399_968, 400_000, 1_000_000)]
    assert found == [Wanted(True, False), Wanted(True, False), Wanted(False, False), Wanted(False, True)]
    data = SyntheticHeads(tmp_path / "some", 0, 0.4, lambda step: found[step])
    early, late = data.batch(0, 2), data.batch(3, 2)
    assert early.points.shape == (2, 40, 3)
    assert early.uv.shape == (2, 0)
    assert late.points.shape == (2, 0)
    assert late.uv.shape == (2, 3, SIZES.image, SIZES.image)
    assert late.depth.shape == (2, 1, SIZES.rays, SIZES.rays)
    # While geometry is wanted heads without it are not drawn, and later all are.
    assert len(data.with_geometry) == 2
    distinct = [len(data.batch(step, 4).background.unique(dim=0)) for step in (1, 2)]
    assert distinct[0] <= 2 < distinct[1]


def test_training_takes_the_photo_as_the_source_and_any_view_as_the_target(inputs, tmp_path):
    heads(inputs, tmp_path / "out", portrait_share=1.0)
    reader = ShardReader(tmp_path / "out")
    cameras = {}
    for key in reader:
        sample = reader[key]
        photo = Heads.view.array(sample, 0).tobytes()
        # Two heads may be the same portrait.
        own = cameras.setdefault(photo, [])
        own.extend(Heads.cameras.array(sample))
    data = SyntheticHeads(tmp_path / "out", 0)
    targets = set()
    for step in range(12):
        batch = data.batch(step, 2)
        photos = to_uint8(batch.source)
        for photo, camera in zip(photos, batch.camera, strict=True):
            own = np.stack(cameras[photo.tobytes()])
            row = row_of(camera.numpy(), own)
            assert row >= 0
            targets.add(row % 3)
    assert targets == {0, 1, 2}


def test_heads_depend_on_the_inputs_alone(inputs, tmp_path):
    heads(inputs, tmp_path / "one")
    before = checksums(tmp_path / "one")
    heads(inputs, tmp_path / "one")
    assert checksums(tmp_path / "one") == before
    heads(inputs, tmp_path / "more", heads=7)
    one = ShardReader(tmp_path / "one")
    more = ShardReader(tmp_path / "more")
    *first, last = one.keys()
    for key in first:
        assert one.read(key) == more.read(key)
    # The last one is rendered with a neighbour now, which may change last bits of pictures but no draw.
    drawn = one.read(last, "label.npy")
    assert more.read(last, "label.npy") == drawn


@pytest.fixture(scope="module")
def pools(inputs, tmp_path_factory) -> Pools:
    # Pieces of the tables that have no label to be trained on, as some of a large table have.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.store.tables.ROW_GROUP", 2)
        patch.setenv("DVC_ROOT", str(tmp_path_factory.mktemp("root")))
        return Pools(pool_folder(inputs / "labels"))


@pytest.fixture(scope="module")
def known() -> dict[str, np.ndarray]:
    """What is known of three portraits."""
    three = [label(f"known {i}") for i in range(3)]
    labels = np.stack(three)
    draw = np.random.default_rng(0)
    codes = draw.normal(size=(3, 512))
    return {
        "z": codes.astype(np.float32),
        "label": labels,
        "camera": labels[:, Label.CAMERA],
    }


def section_with(**values):
    section = {
        "look_at_share": 0.5,
        "jaw_share": 0.25,
        "views": 3,
        "portrait_share": 0.0,
        "z": "portraits",
    }
    params = params_with(render_genhead=section | values)
    return params.render_genhead


@pytest.fixture(scope="module")
def drawn(pools, known):
    # Enough for shares to be told from chance by the bounds below.
    section = section_with()
    return [draw_head(index, section, 0, pools, known) for index in range(600)]


def test_pools_hold_no_test_clip(pools):
    assert len(pools.bounds) == 2 + 1
    assert len(pools.frames_M437) == 7
    assert len(pools.appearance_N437) == 9


def test_expressions_come_from_the_pool_and_some_jaws_are_opened(drawn, pools):
    """Facts 3.4."""
    frames = pools.frames_M437
    jaw = Label.JAW.start
    expressions = frames[:, Label.EXPRESSION]
    opened = 0
    same_eyes = 0
    for head in drawn:
        own = head.label
        row = row_of(own[Label.EXPRESSION], expressions)
        assert row >= 0
        assert own[jaw] <= 0.2
        frame = frames[row]
        eyes = frame[Label.EYES]
        opened += own[jaw] != frame[jaw]
        same_eyes += np.array_equal(own[Label.EYES], eyes)
    assert opened / len(drawn) == pytest.approx(0.25, abs=0.06)
    # Eyes are drawn by themselves, and so are those of the same frame once in seven.
    assert same_eyes / len(drawn) == pytest.approx(1 / 7, abs=0.05)


def test_cameras_come_from_the_pool_or_look_at_the_head(drawn, pools):
    fitted = pools.appearance_N437[:, Label.CAMERA]
    from_pool = np.zeros(3)
    for head in drawn:
        from_pool += [row_of(camera, fitted) >= 0 for camera in head.cameras]
        condition = head.condition
        # What the mapping is told is a camera that was fitted, also where another one looks.
        assert row_of(condition[Label.CAMERA], fitted) >= 0
        shape = head.label[Label.SHAPE]
        assert np.array_equal(condition[Label.SHAPE], shape)
    share = from_pool / len(drawn)
    assert np.abs(share - 0.5).max() < 0.08


def test_people_are_those_whom_genhead_knows(drawn, pools, known):
    again = draw_head(7, section_with(), 0, pools, known)
    assert np.array_equal(drawn[7].z, again.z)
    shapes = known["label"][:, Label.SHAPE]
    people = set()
    for head in drawn:
        row = row_of(head.z, known["z"])
        assert np.array_equal(head.label[Label.SHAPE], shapes[row])
        people.add(row)
    assert people == {0, 1, 2}


def test_people_may_be_new_ones(pools, known):
    """An imported GenHead knows no portraits."""
    nothing = {name: values[:0] for name, values in known.items()}
    head = draw_head(0, section_with(z="normal"), 0, pools, nothing)
    shapes = pools.appearance_N437[:, Label.SHAPE]
    assert row_of(head.label[Label.SHAPE], shapes) >= 0
    assert head.z.shape == (512,)


def test_a_share_of_the_heads_are_portraits(pools, known):
    section = section_with(portrait_share=0.4)
    some = []
    for index in range(300):
        some.append(draw_head(index, section, 0, pools, known))
    photos = [head for head in some if head.photo is not None]
    share = len(photos) / len(some)
    assert share == pytest.approx(0.4, abs=0.08)
    for head in photos:
        own = {name: values[head.photo] for name, values in known.items()}
        assert np.array_equal(head.label[APPEARANCE], own["label"][APPEARANCE])
        assert not head.label[Label.NECK].any()
        assert np.array_equal(head.z, own["z"])
        assert np.array_equal(head.cameras[0], own["camera"])


def test_points_lie_on_rays_of_the_face():
    camera = look_at(0.0, 0.0, 4.0, np.zeros(3))
    face = np.zeros((1, 8, 8), bool)
    face[0, 2, 5] = True
    opacity = np.ones((1, 8, 8))
    depth = np.full((1, 8, 8), 3.8)
    points = sample_points(camera[None], face, opacity, depth, rng(0, "points"), 400, 1.3)
    # All of them lie on the ray of the one pixel that shows the face.
    places = project(points, camera)
    assert np.allclose(places, [5.5 / 8, 2.5 / 8], atol=1e-5)
    origin = camera[[3, 7, 11]]
    distance = np.linalg.norm(points - origin, axis=1)
    assert distance.min() > 3.3
    assert distance.max() < 4.7
    # Every other point lies near the surface, the others do not.
    near = distance[::2]
    anywhere = distance[1::2]
    assert near.std() < 0.1
    assert anywhere.min() < 3.5
    assert anywhere.max() > 4.5


def test_heads_say_what_is_missing(inputs, tmp_path):
    params = params_with()
    out = tmp_path / "out"
    nowhere = tmp_path / "nowhere"
    labels = inputs / "labels"
    genhead = inputs / "genhead"
    with pytest.raises(UserError, match=r"ffhq\.parquet is missing"):
        render_genhead(params, nowhere, genhead, out)
    with pytest.raises(UserError, match="nowhere is missing"):
        render_genhead(params, labels, nowhere, out)
    # A table whose only row was rejected.
    rejected = tmp_path / "labels"
    write_labels(rejected / "ffhq.parquet", [("p0", "", "train")], rejected="p0")
    shutil.copy(labels / "vfhq.parquet", rejected)
    with pytest.raises(UserError, match="no label in"):
        render_genhead(params, rejected, genhead, out)
    assert not out.exists()


def test_landmarks_of_a_head_keep_their_bits_whatever_heads_come_with_it():
    """They are those that training computed of a batch before they were stored, one camera of each head."""
    flame = Flame(head_model.load("standin"))
    several = np.stack([label(f"head {i}") for i in range(9)])
    labels = torch.from_numpy(several)
    own = labels[:, Label.CAMERA]
    reversed_order = own.flip(0)
    cameras = torch.stack([own, reversed_order], dim=1)
    views = cameras.split(1, dim=1)
    wanted = [landmarks(flame, labels, view) for view in views]
    wanted = torch.cat(wanted, dim=1)
    for size in (1, 2, 3, 5, 9):
        batches = zip(labels.split(size), cameras.split(size), strict=True)
        parts = [view_landmarks(flame, *batch) for batch in batches]
        found = torch.cat(parts)
        assert torch.equal(found, wanted)


def test_the_position_map_shows_the_canonical_place_of_a_landmark():
    flame = Flame(head_model.load("standin"))
    tilted = torch.from_numpy(label("tilted"))[None]
    camera = tilted[:, Label.CAMERA]
    size = 128
    [drawn] = position_map(flame, tilted, camera, size)
    corner = flame.landmark_weights[30].argmax()
    nose = int(flame.landmark_vertices[30, corner])
    (vertices,) = head_vertices(flame, tilted).numpy()
    (view,) = camera.numpy()
    (place,) = project(vertices[nose, None], view)
    column, row = (place * size).astype(int)
    found = drawn[:, row, column] * EXTENT
    wanted = flame.canonical()[nose]
    assert (found - wanted).norm() < 0.03
    assert drawn.abs().max() <= 1
    assert (drawn[:, 0, 0] == 0).all()
