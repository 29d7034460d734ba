"""Generated people: drawn where the truth says, found by the real front end."""

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.spatial.transform import Rotation

from pipeline.config.scales import scale_params
from pipeline.core.files import key_of
from pipeline.core.seeds import rng
from pipeline.geometry.camera import look_at, project, rotation, sample_look_at
from pipeline.geometry.label import Label
from pipeline.store.samples import DEPTH_UNIT
from pipeline.store.shards import ShardReader, decode_npy, decode_png
from pipeline.synthetic.animation import REST_PITCH, clip, photo
from pipeline.synthetic.generator import generate, latent, true_label, true_landmarks
from pipeline.synthetic.person import person
from pipeline.synthetic.raster import render
from pipeline.synthetic.scene import Moment, figure, pose

FRONT = look_at(0.0, 0.25, 4.2, np.array([0.0, 0.0, 0.1]))


@pytest.fixture(scope="module")
def someone():
    return figure(person(latent(0, "someone")))


def test_a_picture_is_sound(someone):
    picture = render(someone, Moment(), FRONT, 96)
    assert picture.rgb.shape == (96, 96, 3) and picture.rgb.dtype == np.uint8
    assert set(np.unique(picture.alpha)) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert np.array_equal(np.isfinite(picture.depth), picture.alpha > 0)
    assert 3.6 < np.median(picture.depth[picture.alpha > 0]) < 4.4
    assert picture.alpha[48, 48] == 1 and picture.alpha[0, 0] == 0 and 0.3 < picture.alpha.mean() < 0.8
    assert np.array_equal(picture.rgb, render(someone, Moment(), FRONT, 96).rgb)


def test_depth_lies_on_the_mesh(someone):
    """The depth at the tip of the nose is the distance of that landmark from the camera."""
    camera, size = FRONT, 128
    picture = render(someone, Moment(), camera, size)
    tip = pose(someone, Moment())[: len(someone.rest)]
    nose = tip[np.argmax(np.where(np.abs(tip[:, 1]) < 0.08, tip[:, 2], -1))]
    column, row = (project(nose[None], camera)[0] * size).astype(int)
    assert abs(picture.depth[row, column] - np.linalg.norm(nose - camera[:16].reshape(4, 4)[:3, 3])) < 0.01


def test_any_intrinsics_show_the_same_points(someone):
    """A crop (longer focal length, moved centre) is a cut-out of the whole picture."""
    narrow = FRONT.copy()
    narrow[[16, 20]] *= 2
    narrow[[18, 21]] = 0.5
    small, large = render(someone, Moment(), narrow, 64), render(someone, Moment(), FRONT, 128)
    cut = large.rgb[32:96, 32:96].astype(float)
    assert np.abs(small.rgb - cut).mean() < 4


def test_people_differ_and_nearby_latents_are_nearby_people(someone):
    z = latent(0, "someone")
    near = render(figure(person(z + 0.01)), Moment(), FRONT, 64).rgb.astype(float)
    here = render(someone, Moment(), FRONT, 64).rgb.astype(float)
    others = [
        render(figure(person(latent(0, f"other {k}"))), Moment(), FRONT, 64).rgb.astype(float)
        for k in range(4)
    ]
    assert np.abs(near - here).mean() < 4
    assert min(np.abs(other - here).mean() for other in others) > 20


def test_a_shot_holds_the_rotation_of_the_head_twice(someone):
    shot = photo(rng(0, "test"))
    label = true_label(someone.person, shot)
    assert label.shape == (Label.SIZE,) and label.dtype == np.float32
    neck = Rotation.from_rotvec(label[Label.NECK])
    assert np.allclose(rotation(label).T, neck.as_matrix(), atol=1e-6)
    points = true_landmarks(someone, shot, 256)
    assert points.shape == (70, 2) and (points > 0).all() and (points < 256).all()
    assert points[68, 0] < points[69, 0] and points[8, 1] > points[27, 1]


def test_clips_move_within_their_limits():
    for number in range(4):
        shots = clip(rng(0, "clip", number), 48, 25.0)
        turns = np.array([shot.rotation for shot in shots])
        assert np.abs(turns[:, 1]).max() < np.radians(30) and np.abs(
            turns[:, 0] - REST_PITCH
        ).max() < np.radians(15)
        assert np.abs(np.diff(turns, axis=0)).max() < np.radians(6)  # no jumps
        jaw = np.array([shot.moment.jaw[0] for shot in shots])
        assert jaw.min() >= 0 and jaw.max() > 0.05
        assert all(
            np.isfinite(np.concatenate([s.moment.expression, s.moment.eyes, s.moment.extra])).all()
            for s in shots
        )


def small_params():
    params = scale_params("smoke")
    ingest = {
        "identities": 2,
        "photos": 2,
        "train_clips": 1,
        "validation_clips": 1,
        "test_clips": 1,
        "frames": 8,
        "portrait_size": 96,
        "clip_size": 96,
        "shard_size": 2,
    }
    return params.model_copy(update={"ingest": params.ingest.model_copy(update=ingest)})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        generate(small_params(), folder / "out", folder / "truth")
    return folder


def test_files_and_truth_belong_together(made):
    portraits = pq.read_table(made / "truth/portraits.parquet").to_pylist()
    assert sorted(path.name for path in (made / "out/portraits").iterdir()) == sorted(
        row["file"] for row in portraits
    )
    assert len({row["identity"] for row in portraits}) == 2
    frames = pq.read_table(made / "truth/frames.parquet").to_pylist()
    assert len(frames) == 24 and {row["split"] for row in frames} == {"train", "validation", "test"}
    for file in ("train-0000.mp4", "validation-0000.mp4", "test-0000.mp4"):
        with av.open(str(made / "out/clips" / file)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 8
    people = {
        row["identity"]: row["z"] for row in pq.read_table(made / "truth/identities.parquet").to_pylist()
    }
    assert set(people) == {row["identity"] for row in portraits} | {row["identity"] for row in frames}
    assert len({row["identity"] for row in frames}) == 3  # nobody is in two clips
    reader = ShardReader(made / "truth")
    row = portraits[0]
    fields = reader.read(key_of(row["file"]))
    mask, depth = decode_png(fields["mask.png"]), decode_png(fields["depth.png"])
    assert np.array_equal(mask > 0, depth > 0) and 3.5 < np.median(depth[depth > 0]) * DEPTH_UNIT < 4.6
    nose = np.array(row["landmarks"]).reshape(70, 2)[30].astype(int)
    assert mask[nose[1], nose[0]] == 255


def test_true_views_of_held_out_clips(made):
    reader = ShardReader(made / "truth")
    keys = [key for key in sorted(reader.keys()) if "cameras.npy" in reader.fields(key)]
    assert keys == [f"{key_of(f'{split}-0000.mp4')}-000004" for split in ("test", "validation")]
    fields = reader.read(keys[0])
    moved, unmoved = (decode_png(fields[f"{name}.png"]).astype(float) for name in ("view0", "unmoved"))
    head, change = decode_png(fields["alpha0.png"]) > 0, np.abs(moved - unmoved)
    assert change[head].mean() > 2 and change[head].mean() > 5 * change[~head].mean()
    cameras = decode_npy(fields["cameras.npy"])
    assert cameras.shape == (4, 25) and np.allclose(cameras[:, 16], sample_look_at(rng(0))[16])
    side = scale_params("smoke").networks.image
    assert (
        decode_png(fields["view3.png"]).shape == (side, side, 3)
        and decode_npy(fields["depth0.npy"]).dtype == np.float32
    )


def test_the_face_mesh_finds_what_was_drawn():
    """MediaPipe's landmarks against the true ones, the way ingest finds them."""
    from pipeline.geometry.landmarks import interocular, landmarks_70

    mediapipe = pytest.importorskip("mediapipe")
    mesh = mediapipe.solutions.face_mesh.FaceMesh(static_image_mode=True, refine_landmarks=True)
    errors, size = [], 256
    for number in range(8):
        body, shot = figure(person(latent(1, f"{number}"))), photo(rng(1, number))
        picture = render(body, shot.moment, shot.camera, size)
        found = mesh.process(picture.rgb).multi_face_landmarks
        if found:
            points = landmarks_70(np.array([[p.x, p.y, p.z] for p in found[0].landmark])[None])[0] * size
            wanted = true_landmarks(body, shot, size)
            errors.append(np.linalg.norm(points - wanted, axis=1) / interocular(wanted[None])[0])
    assert len(errors) >= 7
    assert np.median(errors) < 0.045
