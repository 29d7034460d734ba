"""Films of drawn heads: read as the graph reads them, and the same however they are made."""

import json
import shutil
import time
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.avatar import saved
from pipeline.avatar.animate import animate, animate_files, check_look
from pipeline.avatar.animator import Animator, Avatar, Turns
from pipeline.avatar.driver import read_driver, shown_frames, steady_distance
from pipeline.avatar.film_maker import Look
from pipeline.avatar.front_end import FrontEnd
from pipeline.avatar.relative import strengthened
from pipeline.avatar.studio import Studio
from pipeline.config.scales import scale_text
from pipeline.core.errors import UserError
from pipeline.core.files import sha256
from pipeline.engine.work_unit import WorkUnit
from pipeline.fit_flame.solver import fit
from pipeline.geometry import camera_path
from pipeline.geometry.head_model import load
from pipeline.geometry.label import Label
from pipeline.geometry.landmarks import landmarks_70
from pipeline.ingest.worker import Ingester
from pipeline.store.codecs import decode_picture
from tests.avatar.inputs import (
    FRAMES,
    ROOT,
    draw_frames,
    film_of,
    params,
    psi4d,
    save_networks,
    start,
    weights_in,
    write_clip,
)


def pictures(path: str) -> np.ndarray:
    """All frames of a film, uint8 (N, H, W, 3)."""
    with av.open(path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)


def films_by(place: Path, videos: list[Path], out: str, workers: int = 0) -> list[str]:
    """The sums of the films of the photo by each of `videos`."""
    films = animate(
        params(workers),
        weights_in(place),
        [place / "photo.png"],
        videos,
        Path(out),
        Look(),
    )
    return [sha256(film.path) for film in films]


def lines_of(place: Path, *files: Path) -> list[str]:
    """What a person who animates `files` reads."""
    lines = animate_files(
        params(),
        weights_in(place),
        files,
        None,
        Look(),
    )
    return list(lines)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The mean absolute difference of pictures, levels."""
    return np.abs(one.astype(int) - other).mean()


def test_a_photo_is_read_as_the_graph_reads_it(place):
    """The picture and the crop are those of ingest."""
    own = params()
    graph = Ingester(own.ingest, own.networks.image, place, place)
    samples, record = graph(WorkUnit("portraits-000000", ["photo.png"]))
    [(_, fields)] = samples
    [row] = record["portraits"].rows
    front = FrontEnd(own, own.networks.image)
    portrait = front.portrait(place / "photo.png")
    wanted = decode_picture(fields["image.png"])
    assert np.array_equal(portrait.picture_SS3, wanted)
    assert np.array_equal(portrait.crop_3, row["crop"])


def test_a_head_turns_on_its_shoulders(place, tmp_path):
    """By the neck of the driver, and cameras that hold this turn let go of it."""
    animator = Animator(save_networks(tmp_path, neck="field"))
    portrait = FrontEnd(params(), animator.sizes.image).portrait(place / "photo.png")
    avatar = animator.avatar(portrait)
    labels = np.zeros((2, Label.SIZE), np.float32)
    labels[1, Label.NECK] = [0.1, 0.5, 0.0]
    cameras = camera_path.front(2)
    motion = avatar.motion_1M.expand(2, -1)

    def drawn(turns: Turns | None, of: Avatar = avatar, seen_by: np.ndarray = cameras) -> np.ndarray:
        return np.stack(list(animator.pictures(of, motion, seen_by, turns)))

    still = drawn(None)
    assert np.array_equal(still[0], still[1])
    turned = drawn(Turns(labels, by_camera=False))
    assert np.array_equal(turned[0], still[0])
    assert difference(turned[1], still[0]) > 5
    held = drawn(Turns(labels, by_camera=True))
    own = labels.copy()
    own[:, Label.SHAPE] = portrait.label_437[Label.SHAPE]
    let_go = animator.neck.decomposed(torch.from_numpy(cameras)[:, None], torch.from_numpy(own))
    assert np.array_equal(held, drawn(Turns(labels, by_camera=False), seen_by=let_go[:, 0].numpy()))
    assert difference(held[1], turned[1]) > 5

    # The photo's own neck is kept with it.
    assert avatar.source.posing is not None
    saved.save(tmp_path / "one.avatar", avatar, animator, "photo.png")
    again = saved.load(tmp_path / "one.avatar", animator)
    assert np.array_equal(drawn(Turns(labels, by_camera=True), again), held)
    # A Psi that knows no field has heads that never turn.
    plain = Animator(save_networks(tmp_path))
    of_before = plain.avatar(portrait)
    unturned = plain.pictures(of_before, motion, cameras, Turns(labels, by_camera=False))
    first, second = unturned
    assert np.array_equal(first, second)


def test_a_driver_is_read_as_the_graph_reads_it(place):
    """Pictures, crops and landmarks are those of ingest, labels those of fit_flame."""
    own = params()
    graph = Ingester(own.ingest, own.networks.image, place, place)
    samples, record = graph(WorkUnit("clips-000000", ["first.mp4"]))
    wanted = [decode_picture(fields["image.png"]) for _, fields in samples]
    front = FrontEnd(own, own.networks.image)
    driver = read_driver(front, place / "first.mp4")
    found = list(driver.faces(own.networks.image))
    assert len(found) == FRAMES
    assert np.array_equal(found, wanted)
    crops = [row["crop"] for row in record["frames"].rows]
    assert np.array_equal(driver.crops_N3, crops)

    # The fit of all frames at once, which are one person.
    fitted = fit(
        load(own.flame.model),
        driver.points_N702,
        ["first"] * FRAMES,
        own.fit_flame,
    )
    assert np.allclose(driver.labels_N437, fitted.labels, atol=1e-6)
    meshes = [front.find(picture) for _, picture in driver.frames.read()]
    points = landmarks_70(np.stack(meshes))
    scale = driver.crops_N3[:, :1, None]
    shift = driver.crops_N3[:, None, 1:]
    assert np.allclose(driver.points_N702, points * scale + shift, atol=1e-5)


def test_a_film_has_a_picture_for_each_frame_and_moves_with_the_driver(work):
    film = film_of(work)
    shown = pictures("a.mp4")
    assert shown.shape == (FRAMES, 256, 256, 3)
    assert film.frames == FRAMES
    assert film.held == 0
    assert film.sound
    assert not film.reason
    assert film.seconds == pytest.approx(FRAMES / 10, abs=0.1)
    # No frame is black or of one colour, and none is that before it.
    assert shown.std(axis=(1, 2)).min() > 2
    assert min(difference(*pair) for pair in pairwise(shown)) > 0.1
    scratch = Path(".cache/psi4d/scratch")
    assert not list(scratch.rglob("*.tar"))


def test_beside_shows_the_photo_upright_and_not_mirrored(work):
    film_of(work, look=Look(beside=True, size=128))
    shown = pictures("a.mp4")[0]
    front = FrontEnd(params(), 128)
    portrait = front.portrait(work / "photo.png")
    driver = read_driver(front, work / "first.mp4")
    face = next(driver.faces(128))
    # Captions are above the pictures.
    source = shown[-128:, :128]
    driving = shown[-128:, 128:256]
    for found, wanted in ((source, portrait.picture_SS3), (driving, face)):
        assert difference(found, wanted) < 6
        assert difference(found[:, ::-1], wanted) > 12


def test_cameras_and_relative_motion_change_the_film(work):
    looks = [
        Look(),
        Look("front"),
        Look("orbit"),
        Look(relative="first"),
        Look(relative="neutral"),
    ]
    seen = set()
    for look in looks:
        film = film_of(work, look=look)
        seen.add(sha256(film.path))
    # The most neutral frame may be the first one.
    assert len(seen) >= 4
    words = "--camera is above, but must be one of driving, front, orbit"
    with pytest.raises(UserError, match=words):
        check_look(Look("above"))


def test_a_strength_of_nothing_keeps_the_face_still(work):
    own, driving = torch.randn(1, 30), torch.randn(5, 30)
    assert torch.equal(strengthened(own, driving, 1.0), driving)
    assert torch.equal(strengthened(own, driving, 0.0), own.expand(5, -1))
    assert torch.allclose(strengthened(own, driving, 1.5), own + 1.5 * (driving - own))

    # From the front nothing else moves.
    films = {}
    for strength in (0.0, 1.0, 3.0):
        film = film_of(work, f"{strength}.mp4", look=Look("front", strength=strength))
        films[strength] = pictures(str(film.path))
    left = {strength: difference(film, films[0.0]) for strength, film in films.items()}
    assert 0 < left[1.0] < left[3.0]


def test_a_saved_avatar_says_what_it_is(work):
    studio = Studio(params(), weights_in(work))
    avatar = studio.avatar(work / "photo.png")
    for name in ("one.avatar", "two.avatar"):
        saved.save(Path(name), avatar, studio.animator, "photo.png")
    assert sha256("one.avatar") == sha256("two.avatar")
    about = saved.read_facts(Path("one.avatar"))
    assert about["weights"] == studio.animator.facts["sha256"]
    assert about["photo"] == "photo.png"
    assert about["crop"] == avatar.portrait.crop_3.tolist()
    assert "set terms for its use" in about["notice"]


def test_a_saved_avatar_makes_the_film_of_its_photo(work):
    studio = Studio(params(), weights_in(work))
    avatar = studio.avatar(work / "photo.png")
    saved.save(Path("one.avatar"), avatar, studio.animator, "photo.png")
    film_of(work, "a.mp4")
    film_of(work, "b.mp4", photo="one.avatar")
    assert sha256("a.mp4") == sha256("b.mp4")


@pytest.mark.process
@pytest.mark.slow
def test_equal_bytes_for_any_number_of_workers(work):
    videos = [work / "first.mp4", work / "second.mp4"]
    found = {}
    for workers in (0, 1, 2):
        # None of them begins with what another one has found.
        shutil.rmtree(".cache", ignore_errors=True)
        folder = f"by-{workers}"
        found[workers] = films_by(work, videos, folder, workers)
        assert Path(folder, "contact_sheet.jpg").is_file()
    assert found[0] == found[1] == found[2]
    first, second = found[0]
    assert first != second
    assert films_by(work, videos, "known") == found[0]
    # A film is the same alone and among others.
    alone = film_of(work, "b.mp4", driver="second.mp4")
    assert sha256(alone.path) == second


@pytest.mark.process
@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(work):
    """What one unit left in the scratch folder is taken as it is."""
    shutil.copy(ROOT / "dvc.yaml", ".")
    Path("params.yaml").write_text(scale_text("smoke"))
    videos = [Path(f"{number}.mp4") for number in range(6)]
    for video in videos:
        shutil.copy(work / "first.mp4", video)
    own = weights_in(work)
    networks = ["--psi", own.psi, "--motion", own.motion]
    run = start(Path(), "animate", work / "photo.png", *videos, "-o", "killed", *networks)
    scratch = Path(".cache")
    while run.poll() is None and not list(scratch.rglob("*.done.json")):
        time.sleep(0.005)
    run.kill()
    run.communicate()
    # Nothing is in its place before all is done, and what is done is kept.
    assert not list(Path("killed").glob("*.mp4"))
    assert list(scratch.rglob("film-000000-000000.done.json"))
    continued = films_by(work, videos, "killed")
    shutil.rmtree(".cache")
    assert continued == films_by(work, videos, "whole")


def write_lost(path: Path) -> Path:
    """A video whose frames 0, 3 and 4 are grey."""
    frames = draw_frames(FRAMES)
    for lost in (0, 3, 4):
        frames[lost] = np.full_like(frames[lost], 90)
    seconds = [number / 10 for number in range(FRAMES)]
    return write_clip(path, frames, seconds)


def test_frames_without_a_face_are_held_and_counted(work):
    write_lost(Path("lost.mp4"))
    film = film_of(work, driver="lost.mp4")
    assert film.frames == FRAMES
    assert film.held == 3
    assert film.lost == "3 x no face"
    assert pictures("a.mp4").std(axis=(1, 2)).min() > 2


def test_a_held_frame_has_motion_and_camera_of_the_one_before(work):
    path = write_lost(Path("lost.mp4"))
    studio = Studio(params(), weights_in(work))
    driver, motion = studio.driver(path)
    # Before the first face there is none to hold.
    assert driver.shown_N.tolist() == [1, 1, 2, 2, 2, 5, 6, 7]
    assert torch.equal(motion[0], motion[1])
    assert torch.equal(motion[2], motion[4])
    assert not torch.equal(motion[1], motion[2])
    assert np.array_equal(driver.labels_N437[2], driver.labels_N437[4])


def test_a_watched_film_is_the_same_and_has_measures(work):
    film_of(work, "plain.mp4")
    # To watch a film may cost time but must change no pixel of it.
    film = film_of(work, "watched.mp4", Look(measure=True))
    assert sha256("plain.mp4") == sha256("watched.mp4")
    written = Path("watched.json").read_text()
    assert film.measures == json.loads(written)
    assert set(film.measures) == {
        "found",
        "fast_motion",
        "shaking",
        "size_change",
        "correlation",
        "background",
    }
    assert 0 <= film.measures["found"] <= 1
    assert film.measures["size_change"]["driver"] > 0
    table = Path("watched.txt").read_text()
    assert "size change driver" in table


def test_a_smoothed_crop_is_steadier_and_the_usual_smoothing_is_that_of_ingest(work):
    front = FrontEnd(params(), 32)
    crops = {"usual": read_driver(front, work / "first.mp4").crops_N3}
    for seconds in (0.0, 0.12, 0.5):
        front.smooth = seconds
        driver = read_driver(front, work / "first.mp4")
        crops[seconds] = driver.crops_N3
    assert np.array_equal(crops["usual"], crops[0.12])
    # The second difference of an even motion is zero, so that it is what shakes.
    shaking = {}
    for name, values in crops.items():
        second_difference = np.diff(values, n=2, axis=0)
        shaking[name] = np.abs(second_difference).mean()
    assert shaking[0.5] < shaking[0.12] < shaking[0.0]


def test_the_distance_of_cameras_is_steady_and_their_rotation_stays():
    random = np.random.default_rng(0)
    seconds = np.arange(50) / 25
    cameras = camera_path.orbit(50)
    noise = 1 + 0.02 * random.normal(size=(50, 1))
    shaking = cameras.copy()
    shaking[:, [3, 7, 11]] *= noise.astype(np.float32)

    def pulsation(cameras_N25: np.ndarray) -> float:
        distances = np.linalg.norm(cameras_N25[:, [3, 7, 11]], axis=1)
        return np.abs(np.diff(distances)).mean()

    # From frame to frame: slow changes are those of a person who leans forward.
    steady = steady_distance(shaking, seconds, 0.12)
    assert pulsation(steady) < 0.1 * pulsation(shaking)
    others = np.delete(np.arange(25), [3, 7, 11])
    assert np.array_equal(steady[:, others], shaking[:, others])
    assert np.array_equal(steady_distance(shaking, seconds, 0.0), shaking)


def test_held_frames_show_the_last_face_before_them():
    assert shown_frames(7, np.array([1, 2, 5])).tolist() == [1, 1, 2, 2, 2, 5, 5]


def test_a_picture_drives_a_film_of_one_frame(work):
    photo = work / "photo.png"
    # The last file drives, whatever it is.
    [line] = lines_of(work, photo, photo)
    assert line == "photo-photo.mp4: 1 frame, 0.04 s, without sound"
    assert len(pictures("photo-photo.mp4")) == 1


def test_of_several_the_bad_ones_are_named_and_the_others_made(work):
    good, bad = Path("good.png"), Path("grey.png")
    shutil.copy(work / "photo.png", good)
    Image.new("RGB", (200, 200), (90, 90, 90)).save(bad)
    first, second, last = lines_of(work, good, bad, work / "first.mp4")
    assert first.startswith("films/good-first.mp4: 8 frames")
    assert second.startswith("not made: ")
    assert "grey.png: no face" in second
    assert "contact_sheet.jpg" in last


def test_threads_do_not_change_a_film(work):
    # Sums of several threads differ in their last bits, which a film would show.
    torch.set_num_threads(2)
    try:
        film_of(work, "a.mp4")
    finally:
        torch.set_num_threads(1)
    film_of(work, "b.mp4")
    assert sha256("a.mp4") == sha256("b.mp4")


@pytest.mark.process
def test_the_commands_from_a_photo_to_a_film_and_a_mesh(place, tmp_path):
    # The command works in a folder with a graph alone.
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    params_file = tmp_path / "params.yaml"
    params_file.write_text(scale_text("smoke"))
    photo, video = place / "photo.png", place / "first.mp4"
    refused = psi4d(tmp_path, "animate", photo, video)
    assert refused.returncode == 1
    assert refused.stderr.startswith("psi4d: data/psi/psi.safetensors is missing")

    own = weights_in(place)
    networks = ["--psi", own.psi, "--motion", own.motion]
    # The avatar takes the place of its photo from here on.
    made = psi4d(tmp_path, "avatar", photo, "-o", "a.avatar", *networks)
    assert made.returncode == 0
    assert made.stdout == f"the avatar of {photo} is now a.avatar\n"
    frame = ["--driving", video, "--frame", "2"]
    commands = {
        "a.mp4": ["animate", "a.avatar", video, "-o", "a.mp4", "--smooth", "0.3"],
        "b.jpg": ["orbit", "a.avatar", "-o", "b.mp4", "--size", "64"],
        "c.glb": ["mesh", "a.avatar", "-o", "c.glb", "--size", "32", *frame],
    }
    for out, command in commands.items():
        run = psi4d(tmp_path, *command, *networks)
        assert run.returncode == 0, run.stderr
        assert (tmp_path / out).is_file()
        assert Path(out).stem in run.stdout
