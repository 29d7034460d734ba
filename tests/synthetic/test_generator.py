"""Generated people: drawn where the truth says, found by the real front end."""

from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.spatial.transform import Rotation

from pipeline.config.scales import scale_params
from pipeline.core.files import key_of
from pipeline.core.seeds import rng
from pipeline.geometry.camera import look_at, project, rotation, sample_look_at, unpack
from pipeline.geometry.label import Label
from pipeline.geometry.landmarks import interocular, landmarks_70
from pipeline.store.codecs import decode_picture
from pipeline.store.samples import DEPTH_UNIT
from pipeline.store.shards import ShardReader, decode_npy
from pipeline.synthetic.animation import REST_PITCH, clip, photo
from pipeline.synthetic.generator import generate, latent, true_label, true_landmarks
from pipeline.synthetic.person import person
from pipeline.synthetic.raster import Picture, render
from pipeline.synthetic.scene import Figure, Moment, figure, pose
from tests.support.folders import checksums

FRONT = look_at(0.0, 0.25, 4.2, np.array([0.0, 0.0, 0.1]))
FRAMES = 8


@pytest.fixture(scope="module")
def someone() -> Figure:
    return figure(person(latent(0, "someone")))


def drawn(body: Figure, size: int, camera: np.ndarray = FRONT) -> Picture:
    return render(body, Moment(), camera, size)


def colours(body: Figure) -> np.ndarray:
    return drawn(body, 64).rgb


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The mean difference of two pictures in grey values of 255."""
    change = ours.astype(float) - theirs
    return np.abs(change).mean()


def test_a_picture_is_sound(someone):
    picture = drawn(someone, 96)
    rgb = picture.rgb
    alpha = picture.alpha
    inside = alpha > 0
    assert rgb.shape == (96, 96, 3)
    assert rgb.dtype == np.uint8
    # Four samples a pixel make five values.
    shares = {0.0, 0.25, 0.5, 0.75, 1.0}
    assert set(np.unique(alpha)) <= shares
    assert np.array_equal(np.isfinite(picture.depth), inside)
    distance = np.median(picture.depth[inside])
    assert 3.6 < distance < 4.4
    assert alpha[48, 48] == 1
    assert alpha[0, 0] == 0
    assert 0.3 < alpha.mean() < 0.8
    again = drawn(someone, 96)
    assert np.array_equal(rgb, again.rgb)


def test_depth_lies_on_the_mesh(someone):
    """The depth at the tip of the nose is its distance from the camera."""
    size = 128
    picture = drawn(someone, size)
    vertices = pose(someone, Moment())
    # The nose is what stands out the most near the middle of the face.
    _, y, z = vertices.T
    middle = np.abs(y) < 0.08
    forwards = np.where(middle, z, -1)
    nose = vertices[forwards.argmax()]
    place = project(nose[None], FRONT)[0]
    column, row = (place * size).astype(int)
    cam2world, _ = unpack(FRONT)
    centre = cam2world[:3, 3]
    distance = np.linalg.norm(nose - centre)
    drawn_distance = picture.depth[row, column]
    assert abs(drawn_distance - distance) < 0.01


def test_any_intrinsics_show_the_same_points(someone):
    """A crop (longer focal length, moved centre) is a cut-out of the whole picture."""
    # Intrinsics row by row: 16 and 20 are the focal lengths, 18 and 21 the centre.
    narrow = FRONT.copy()
    narrow[[16, 20]] *= 2
    narrow[[18, 21]] = 0.5
    small = drawn(someone, 64, narrow)
    large = drawn(someone, 128)
    cut = large.rgb[32:96, 32:96]
    assert difference(small.rgb, cut) < 4


def test_people_differ_and_nearby_latents_are_nearby_people(someone):
    # Other people differ in skin, hair, shirt and background.
    here = colours(someone)
    z = latent(0, "someone")
    near = figure(person(z + 0.01))
    assert difference(colours(near), here) < 4
    for number in range(4):
        z = latent(0, f"other {number}")
        other = figure(person(z))
        assert difference(colours(other), here) > 20


def test_a_shot_holds_the_rotation_of_the_head_twice(someone):
    shot = photo(rng(0, "test"))
    label = true_label(someone.person, shot)
    assert label.shape == (Label.SIZE,)
    assert label.dtype == np.float32
    neck = Rotation.from_rotvec(label[Label.NECK])
    camera = rotation(label)
    assert np.allclose(camera.T, neck.as_matrix(), atol=1e-6)


def test_true_landmarks_lie_in_the_picture_the_right_way_round(someone):
    shot = photo(rng(0, "test"))
    points = true_landmarks(someone, shot, 256)
    assert points.shape == (70, 2)
    assert (points > 0).all()
    assert (points < 256).all()
    # The person's right pupil is on the left of the image, the chin below the bridge of the nose.
    x, y = points.T
    assert x[68] < x[69]
    assert y[8] > y[27]


@pytest.mark.parametrize("number", range(4))
def test_clips_move_within_their_limits(number):
    shots = clip(rng(0, "clip", number), 48, 25.0)
    turns = np.array([shot.rotation for shot in shots])
    pitch, yaw, _ = np.degrees(turns).T
    nod = pitch - np.degrees(REST_PITCH)
    assert np.abs(yaw).max() < 30
    assert np.abs(nod).max() < 15
    # Between two frames a head does not jump.
    steps = np.diff(turns, axis=0)
    assert np.abs(steps).max() < np.radians(6)
    # Mouths open, and no lower jaw goes up into the upper one.
    jaw = [shot.moment.jaw[0] for shot in shots]
    assert min(jaw) >= 0
    assert max(jaw) > 0.05
    for shot in shots:
        face = shot.moment
        for moved in (face.expression, face.eyes, face.extra):
            assert np.isfinite(moved).all()


# The fewest files that have everything: two photos of a person, a clip of every split, of held-out ones a
# frame with true views.
FEW = {
    "identities": 2,
    "photos": 2,
    "train_clips": 1,
    "validation_clips": 1,
    "test_clips": 1,
    "frames": FRAMES,
    "portrait_size": 96,
    "clip_size": 96,
    "shard_size": 2,
}


@pytest.mark.parametrize("share", [0.35, 1.0])
def test_shoulders_follow_the_head_as_far_as_they_are_told(share):
    straight = Rotation.from_euler("x", REST_PITCH)
    for shot in clip(rng(0, "shoulders"), 6, 5, share):
        head = Rotation.from_rotvec(shot.rotation)
        bust = head * Rotation.from_rotvec(shot.moment.body)
        # With 1 they stay straight, whatever the head does.
        turn = (head.inv() * straight).magnitude()
        assert (straight.inv() * bust).magnitude() == pytest.approx((1 - share) * turn, abs=1e-6)


def draw(folder: Path, name: str, **changes: int) -> None:
    """Run the generator in `folder`; what it makes is called `name`."""
    params = scale_params("smoke")
    ingest = params.ingest.model_copy(update=FEW | changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        generate(params.model_copy(update={"ingest": ingest}), folder / name, folder / f"{name} truth")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    draw(folder, "out")
    (folder / "out truth").rename(folder / "truth")
    return folder


def test_one_more_clip_draws_no_other_file(made, capfd):
    draw(made, "more", train_clips=FEW["train_clips"] + 1)
    assert "generate: 1 of 6 shards to do, 5 done already: 1 file;" in capfd.readouterr().err
    before, after = checksums(made / "out"), checksums(made / "more")
    new = f"clips/train-{FEW['train_clips']:04d}.mp4"
    assert after.keys() - before.keys() == {new}
    assert before.items() <= after.items()


def rows(made: Path, table: str) -> list[dict]:
    path = made / f"truth/{table}.parquet"
    return pq.read_table(path).to_pylist()


def truth(made: Path, key: str) -> dict[str, bytes]:
    return ShardReader(made / "truth").read(key)


def held_out(split: str) -> str:
    """The key of the frame of a split that has true views."""
    clip_key = key_of(f"{split}-0000.mp4")
    return f"{clip_key}-000004"


def values(table: list[dict], column: str) -> set:
    return {row[column] for row in table}


def test_every_portrait_has_a_row_of_truth(made):
    portraits = rows(made, "portraits")
    folder = made / "out/portraits"
    files = {path.name for path in folder.iterdir()}
    assert files == values(portraits, "file")
    assert len(portraits) == 4
    assert len(values(portraits, "identity")) == 2


def test_every_frame_of_a_clip_has_a_row_of_truth(made):
    frames = rows(made, "frames")
    assert len(frames) == 3 * FRAMES
    assert values(frames, "split") == {"train", "validation", "test"}
    for file in values(frames, "file"):
        path = made / "out/clips" / file
        with av.open(str(path)) as container:
            decoded = list(container.decode(video=0))
        assert len(decoded) == FRAMES


def test_no_person_is_in_two_clips(made):
    frames = rows(made, "frames")
    portraits = rows(made, "portraits")
    identities = rows(made, "identities")
    in_clips = values(frames, "identity")
    clips = values(frames, "clip")
    assert len(in_clips) == len(clips) == 3
    in_portraits = values(portraits, "identity")
    assert values(identities, "identity") == in_clips | in_portraits


def test_the_truth_of_a_portrait_lies_on_the_head(made):
    row = rows(made, "portraits")[0]
    fields = truth(made, key_of(row["file"]))
    mask = decode_picture(fields["mask.png"])
    depth = decode_picture(fields["depth.png"])
    head = mask > 0
    assert np.array_equal(head, depth > 0)
    # Cameras of photos stand about 4.2 from the neck.
    distance = np.median(depth[head]) * DEPTH_UNIT
    assert 3.5 < distance < 4.6
    # Landmark 30 is the tip of the nose.
    landmarks = np.array(row["landmarks"]).reshape(70, 2)
    tip = landmarks[30]
    column, line = tip.astype(int)
    assert mask[line, column] == 255


def test_true_views_of_held_out_clips(made):
    reader = ShardReader(made / "truth")
    keys = sorted(reader.keys())
    with_views = [key for key in keys if "cameras.npy" in reader.fields(key)]
    assert with_views == [held_out("test"), held_out("validation")]
    fields = reader.read(with_views[0])
    cameras = decode_npy(fields["cameras.npy"])
    assert cameras.shape == (4, 25)
    # All cameras have the one focal length.
    focal = cameras[:, 16]
    other = sample_look_at(rng(0))
    assert np.allclose(focal, other[16])
    side = scale_params("smoke").networks.image
    view = decode_picture(fields["view3.png"])
    assert view.shape == (side, side, 3)
    depth = decode_npy(fields["depth0.npy"])
    assert depth.dtype == np.float32


def test_the_unmoved_view_differs_in_the_head_alone(made):
    fields = truth(made, held_out("test"))
    moved = decode_picture(fields["view0.png"])
    unmoved = decode_picture(fields["unmoved.png"])
    alpha = decode_picture(fields["alpha0.png"])
    head = alpha > 0
    change = np.abs(moved.astype(float) - unmoved)
    # The background is the same in both: only pixels at the edge of the head mix with it.
    inside = change[head].mean()
    outside = change[~head].mean()
    assert inside > 2
    assert inside > 5 * outside


def test_the_face_mesh_finds_what_was_drawn():
    """MediaPipe's landmarks against the true ones, the way ingest finds them."""
    mediapipe = pytest.importorskip("mediapipe")
    face_mesh = mediapipe.solutions.face_mesh
    mesh = face_mesh.FaceMesh(static_image_mode=True, refine_landmarks=True)
    size = 256
    errors = []
    for number in range(8):
        z = latent(1, f"{number}")
        body = figure(person(z))
        shot = photo(rng(1, number))
        picture = render(body, shot.moment, shot.camera, size)
        found = mesh.process(picture.rgb).multi_face_landmarks
        if not found:
            continue
        landmarks = found[0].landmark
        corners = [(point.x, point.y, point.z) for point in landmarks]
        points = landmarks_70(np.array(corners)) * size
        wanted = true_landmarks(body, shot, size)
        distances = np.linalg.norm(points - wanted, axis=1)
        errors.append(distances / interocular(wanted))
    # A face that looks far aside may be missed.
    assert len(errors) >= 7
    assert np.median(errors) < 0.045
