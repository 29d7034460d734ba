"""Films of drawn heads: read as the graph reads them, the same however they are made; bad inputs."""

import json
import shutil
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.avatar import saved
from pipeline.avatar.animate import Film, animate, animate_files, check_look
from pipeline.avatar.animator import Animator, Weights
from pipeline.avatar.driver import read_driver, shown_frames
from pipeline.avatar.film_maker import Look
from pipeline.avatar.front_end import FrontEnd
from pipeline.avatar.studio import Studio
from pipeline.config.scales import scale_text
from pipeline.core.errors import UserError
from pipeline.core.files import sha256
from pipeline.engine.work_unit import WorkUnit
from pipeline.fit_flame.solver import fit
from pipeline.geometry.head_model import load
from pipeline.geometry.landmarks import landmarks_70
from pipeline.ingest.worker import Ingester
from pipeline.store.shards import decode_png
from tests.avatar.inputs import ROOT, draw_frames, draw_photo, params, psi4d, save_networks, start, write_clip
from tests.engine.test_kills import small_disk

FRAMES = 8
LOOK = Look()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A photo, two videos and raw networks."""
    folder = tmp_path_factory.mktemp("avatar")
    save_networks(folder)
    draw_photo(folder / "photo.png")
    seconds = [number / 10 for number in range(FRAMES)]
    for name in ("first", "second"):
        write_clip(folder / f"{name}.mp4", draw_frames(FRAMES, name), seconds, "aac")
    return folder


@pytest.fixture
def work(place, tmp_path, monkeypatch) -> Path:
    """A folder of its own to work in; scratch folders lie below it."""
    monkeypatch.chdir(tmp_path)
    return place


def weights(folder: Path) -> Weights:
    return Weights(folder / "psi.safetensors", folder / "motion.safetensors")


def film_of(
    folder: Path,
    out: str = "a.mp4",
    look: Look = LOOK,
    photo: str = "photo.png",
    driver: str = "first.mp4",
) -> Film:
    """The one film of a photo and a driver, which are in `folder` unless they are here."""
    paths = [Path(name) if Path(name).exists() else folder / name for name in (photo, driver)]
    [film] = animate(params(), weights(folder), paths[:1], paths[1:], Path(out), look)
    return film


def sums(films: list[Film]) -> list[str]:
    return [sha256(film.path) for film in films]


def pictures(path: str) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_photo_and_driver_are_read_as_the_graph_reads_them(place):
    """Pictures, crops and landmarks of ingest, labels of fit_flame."""
    own = params()
    front = FrontEnd(own, own.networks.image)
    graph = Ingester(own.ingest, own.networks.image, place, place)
    samples, record = graph(WorkUnit("portraits-000000", ["photo.png"]))
    [(_, fields)] = samples
    portrait, row = front.portrait(place / "photo.png"), record["portraits"][0]
    assert np.array_equal(portrait.picture_SS3, decode_png(fields["image.png"]))
    assert np.array_equal(portrait.crop_3, row["crop"])

    samples, record = graph(WorkUnit("clips-000000", ["first.mp4"]))
    wanted = [decode_png(fields["image.png"]) for _, fields in samples]
    driver = read_driver(front, place / "first.mp4")
    found = list(driver.faces(own.networks.image))
    assert np.array_equal(found, wanted) and len(found) == FRAMES
    assert np.array_equal(driver.crops_N3, [row["crop"] for row in record["frames"]])
    persons = ["first"] * FRAMES
    fitted = fit(load(own.flame.model), driver.points_N702, persons, own.fit_flame)
    assert np.allclose(driver.labels_N437, fitted.labels, atol=1e-6)
    meshes = [front.find(picture) for _, picture in driver.frames.read()]
    five = landmarks_70(np.stack(meshes)) * driver.crops_N3[:, :1, None] + driver.crops_N3[:, None, 1:]
    assert np.allclose(driver.points_N702, five, atol=1e-5)


def test_a_film_has_a_picture_for_each_frame_and_moves_with_the_driver(work):
    film = film_of(work)
    shown = pictures("a.mp4")
    assert shown.shape == (FRAMES, 256, 256, 3)
    assert (film.frames, film.held, film.sound, film.reason) == (FRAMES, 0, True, "")
    assert film.seconds == pytest.approx(FRAMES / 10, abs=0.1)
    assert shown.std(axis=(1, 2)).min() > 2  # nothing is black or of one colour
    assert np.abs(np.diff(shown.astype(int), axis=0)).mean(axis=(1, 2, 3)).min() > 0.1
    assert not list(Path(".cache/psi4d/scratch").rglob("*.tar"))


def test_beside_shows_the_photo_upright_and_not_mirrored(work):
    look = Look(beside=True, size=128)
    film_of(work, look=look)
    shown = pictures("a.mp4")[0][-128:]
    own = params()
    front = FrontEnd(own, 128)
    parts = {"photo.png": front.portrait(work / "photo.png").picture_SS3}
    parts["first.mp4"] = next(read_driver(front, work / "first.mp4").faces(128))
    for number, wanted in enumerate(parts.values()):
        found = shown[:, 128 * number : 128 * (number + 1)]
        assert np.abs(found.astype(int) - wanted).mean() < 6
        assert np.abs(found[:, ::-1].astype(int) - wanted).mean() > 12


def test_cameras_and_relative_motion_change_the_film(work):
    seen = set()
    looks = [Look(), Look("front"), Look("orbit"), Look(relative="first"), Look(relative="neutral")]
    for look in looks:
        film = film_of(work, look=look)
        seen.add(sha256(film.path))
    assert len(seen) >= 4  # the most neutral frame may be the first one
    with pytest.raises(UserError, match="--camera is above, but must be one of driving, front, orbit"):
        check_look(Look("above"))


def test_a_saved_avatar_makes_the_same_film_and_equal_bytes(work):
    studio = Studio(params(), weights(work))
    avatar = studio.avatar(work / "photo.png")
    for name in ("one.avatar", "two.avatar"):
        saved.save(Path(name), avatar, studio.animator, "photo.png")
    assert sha256("one.avatar") == sha256("two.avatar")
    about = saved.read_facts(Path("one.avatar"))
    assert about["weights"] == studio.animator.facts["sha256"] and about["photo"] == "photo.png"
    assert about["crop"] == avatar.portrait.crop_3.tolist() and "set terms for its use" in about["notice"]
    found = []
    for source in ("photo.png", "one.avatar"):
        film = film_of(work, photo=source)
        found.append(sha256(film.path))
    assert found[0] == found[1]


@pytest.mark.process
@pytest.mark.slow
def test_equal_bytes_for_any_number_of_workers_and_after_a_kill(work):
    """A stopped run goes on: what one unit left in the scratch folder is taken as it is."""
    found = {}
    for workers in (0, 1, 2):
        videos = [work / "first.mp4", work / "second.mp4"]
        films = animate(
            params(workers), weights(work), [work / "photo.png"], videos, Path(f"{workers}"), Look()
        )
        found[workers] = sums(films)
        assert Path(f"{workers}/contact_sheet.jpg").is_file()
    assert found[0] == found[1] == found[2] and len(set(found[0])) == 2
    alone = film_of(work, "b.mp4", driver="second.mp4")
    assert sha256(alone.path) == found[0][1]


@pytest.mark.process
@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(work):
    shutil.copy(ROOT / "dvc.yaml", ".")
    Path("params.yaml").write_text(scale_text("smoke"))
    videos = [Path(f"{number}.mp4") for number in range(6)]
    for video in videos:
        shutil.copy(work / "first.mp4", video)
    networks = ["--psi", weights(work).psi, "--motion", weights(work).motion]
    run = start(Path(), "animate", work / "photo.png", *videos, "-o", "killed", *networks)
    while run.poll() is None and not list(Path(".cache").rglob("*.done.json")):
        time.sleep(0.005)
    run.kill()
    run.communicate()
    # Nothing is in its place before all is done, and what is done is kept.
    assert not list(Path("killed").glob("*.mp4"))
    assert list(Path(".cache").rglob("film-000000-000000.done.json"))
    films = animate(params(), weights(work), [work / "photo.png"], videos, Path("killed"), Look())
    whole = animate(params(), weights(work), [work / "photo.png"], videos, Path("whole"), Look())
    assert sums(films) == sums(whole)


def test_frames_without_a_face_are_held_and_counted(work):
    frames = draw_frames(8)
    for lost in (0, 3, 4):
        frames[lost] = np.full_like(frames[lost], 90)
    write_clip(Path("lost.mp4"), frames, [number / 10 for number in range(8)])
    film = film_of(work, driver="lost.mp4")
    assert (film.frames, film.held, film.lost) == (8, 3, "3 x no face")
    shown = pictures("a.mp4").astype(int)
    assert shown.std(axis=(1, 2)).min() > 2
    driver, motion = Studio(params(), weights(work)).driver(Path("lost.mp4"))
    assert driver.shown_N.tolist() == [1, 1, 2, 2, 2, 5, 6, 7]
    assert torch.equal(motion[0], motion[1]) and torch.equal(motion[2], motion[4])
    assert not torch.equal(motion[1], motion[2])
    assert np.array_equal(driver.labels_N437[2], driver.labels_N437[4])


def test_a_watched_film_is_the_same_and_has_measures(work):
    looks = [Look(), Look(measure=True)]
    found = []
    for look in looks:
        film = film_of(work, look=look)
        found.append(sha256(film.path))
    assert found[0] == found[1] and film.measures == json.loads(Path("a.json").read_text())
    assert set(film.measures) == {"found", "fast_motion", "size_change", "correlation", "background"}
    assert 0 <= film.measures["found"] <= 1 and film.measures["size_change"]["driver"] > 0


def test_held_frames_show_the_last_face_before_them():
    assert shown_frames(7, np.array([1, 2, 5])).tolist() == [1, 1, 2, 2, 2, 5, 5]


def test_a_picture_drives_a_film_of_one_frame(work):
    lines = list(
        animate_files(params(), weights(work), [work / "photo.png", work / "photo.png"], None, Look())
    )
    assert lines == ["photo-photo.mp4: 1 frame, 0.04 s, without sound"]
    assert len(pictures("photo-photo.mp4")) == 1


def test_of_several_the_bad_ones_are_named_and_the_others_made(work):
    shutil.copy(work / "photo.png", "good.png")
    Image.fromarray(np.full((200, 200, 3), 90, np.uint8)).save("grey.png")
    files = [Path("good.png"), Path("grey.png"), work / "first.mp4"]
    lines = list(animate_files(params(), weights(work), files, None, Look()))
    assert lines[0].startswith("films/good-first.mp4: 8 frames") and "contact_sheet.jpg" in lines[2]
    assert lines[1].startswith("not made: ") and "grey.png: no face" in lines[1]


def bad_inputs(folder: Path, good: Path) -> dict[str, tuple[list[Path], str]]:
    """Named inputs, as files of `animate`, and what is said of them."""
    photo, video = good / "photo.png", good / "first.mp4"
    picture = np.asarray(Image.open(photo))
    made = {
        "no face": np.full((200, 200, 3), 90, np.uint8),
        "two faces": np.concatenate([picture, picture], axis=1),
        "head on its side": np.rot90(picture),
        "one pixel": np.zeros((1, 1, 3), np.uint8),
    }
    for name, array in made.items():
        Image.fromarray(np.ascontiguousarray(array)).save(folder / f"{name}.png")
    (folder / "empty.mp4").touch()
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    (folder / "noise.avatar").write_bytes(bytes(range(256)) * 40)
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44_100, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.rate = 44_100
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    grey = [np.full((64, 64, 3), 90, np.uint8)] * 5
    write_clip(folder / "faceless.mp4", grey, [number / 10 for number in range(5)])
    photos = {name: ([folder / f"{name}.png", video], name) for name in made}
    photos["one pixel"] = ([folder / "one pixel.png", video], "image too small: 1 x 1. Take a larger picture")
    photos["head on its side"] = (
        photos["head on its side"][0],
        "no face|face not upright: turned by .* Turn the picture",
    )
    return photos | {
        "no photo": ([video], "needs a photo and a video"),
        "absent photo": ([folder / "absent.png", video], "absent.png does not exist"),
        "absent video": ([photo, folder / "absent.mp4"], "absent.mp4 does not exist"),
        "empty video": ([photo, folder / "empty.mp4"], "empty.mp4: empty file. Copy it again"),
        "no video": ([photo, folder / "noise.mp4"], "noise.mp4: cannot be read"),
        "sound alone": (
            [photo, folder / "sound.mp4"],
            "sound.mp4: no video stream. Name a file with pictures",
        ),
        "faceless video": ([photo, folder / "faceless.mp4"], "faceless.mp4: no face: in 5 of 5 frames"),
        "no avatar": ([folder / "noise.avatar", video], "noise.avatar is no avatar of psi4d, or is damaged"),
    }


def test_every_bad_input_is_said_in_words(work):
    for name, (files, words) in bad_inputs(Path(), work).items():
        with pytest.raises(UserError, match=words) as raised:
            list(animate_files(params(), weights(work), files, Path("out.mp4"), Look()))
        assert len(str(raised.value)) < 400, name
        assert not Path("out.mp4").exists()


def test_avatars_of_other_weights_and_damaged_ones_are_refused(work):
    studio = Studio(params(), weights(work))
    saved.save(Path("a.avatar"), studio.avatar(work / "photo.png"), studio.animator, "photo.png")
    other = Animator(save_networks(Path("other"), seed=1))
    with pytest.raises(
        UserError, match=r"made by other weights .*Make it again: psi4d avatar PHOTO -o a.avatar"
    ):
        saved.load(Path("a.avatar"), other)
    data = bytearray(Path("a.avatar").read_bytes())
    data[-100] ^= 1
    Path("b.avatar").write_bytes(data)
    with pytest.raises(UserError, match=r"b.avatar is damaged: its checksum is another"):
        saved.load(Path("b.avatar"), studio.animator)
    Path("c.avatar").write_bytes(data[:-100])
    with pytest.raises(UserError, match=r"c.avatar is no avatar of psi4d, or is damaged"):
        saved.load(Path("c.avatar"), studio.animator)


def test_networks_that_are_missing_or_do_not_fit(work, tmp_path):
    with pytest.raises(UserError, match=r"nothing is trained yet. Run `dvc repro train`"):
        Animator(Weights(tmp_path / "psi.safetensors", weights(work).motion))
    with pytest.raises(UserError, match=r"Run `dvc repro pretrain@motion`"):
        Animator(Weights(weights(work).psi, tmp_path / "motion.safetensors"))
    with pytest.raises(UserError, match=r"do not fit together"):
        Animator(Weights(weights(work).motion, weights(work).psi))


def test_a_place_that_cannot_be_written_is_said_before_any_work(work):
    with pytest.raises(UserError, match=r"cannot write /proc/.*Make the folder writable"):
        film_of(work, "/proc/a.mp4")
    assert not Path(".cache").exists()


def test_a_full_disk_is_said_and_leaves_no_half_film(work, tmp_path):
    place = tmp_path / "disk"
    with small_disk(place, 8192):
        with pytest.raises(
            UserError, match=r"cannot write .*a.mp4: No space left on device.*free some space"
        ):
            film_of(work, str(place / "a.mp4"))
        assert not list(place.iterdir())


def test_threads_do_not_change_a_film(work):
    torch.set_num_threads(2)
    try:
        film_of(work, "a.mp4")
    finally:
        torch.set_num_threads(1)
    film_of(work, "b.mp4")
    assert sha256("a.mp4") == sha256("b.mp4")


@pytest.mark.process
def test_the_commands_from_a_photo_to_a_film_and_a_mesh(place, tmp_path):
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    (tmp_path / "params.yaml").write_text(scale_text("smoke"))
    photo, video = place / "photo.png", place / "first.mp4"
    refused = psi4d(tmp_path, "animate", photo, video)
    assert refused.returncode == 1 and refused.stderr.startswith("psi4d: data/psi/psi.safetensors is missing")
    networks = ["--psi", place / "psi.safetensors", "--motion", place / "motion.safetensors"]
    made = psi4d(tmp_path, "avatar", photo, "-o", "a.avatar", *networks)
    assert made.stdout == f"the avatar of {photo} is now a.avatar\n" and made.returncode == 0
    for command, out in (
        (["animate", "a.avatar", video, "-o", "a.mp4"], "a.mp4"),
        (["orbit", "a.avatar", "-o", "b.mp4", "--size", "64"], "b.jpg"),
        (["mesh", "a.avatar", "-o", "c.glb", "--size", "32", "--driving", video, "--frame", "2"], "c.glb"),
    ):
        run = psi4d(tmp_path, *command, *networks)
        assert run.returncode == 0 and (tmp_path / out).is_file(), run.stderr
        assert out.rpartition(".")[0] in run.stdout
