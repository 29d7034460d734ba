"""What cannot be animated is refused in words that say what is wrong, where, and what to do."""

import ctypes
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from model.psi.motion_encoder import MotionEncoder
from pipeline.avatar import saved
from pipeline.avatar.animate import animate_files
from pipeline.avatar.animator import Animator, Weights
from pipeline.avatar.film_maker import Look
from pipeline.avatar.orbit import orbit
from pipeline.avatar.studio import Studio
from pipeline.core.errors import UserError
from pipeline.networks.weights import save_weights
from tests.avatar.inputs import film_of, params, save_networks, weights_in, write_clip
from tests.engine.test_kills import small_disk

MS_RDONLY, MS_REMOUNT = 1, 32


def grey(path: Path) -> None:
    Image.new("RGB", (200, 200), (90, 90, 90)).save(path)


def twice(path: Path, photo: np.ndarray) -> None:
    both = np.concatenate([photo, photo], axis=1)
    Image.fromarray(both).save(path)


def on_its_side(path: Path, photo: np.ndarray) -> None:
    turned = np.rot90(photo)
    Image.fromarray(np.ascontiguousarray(turned)).save(path)


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 40)


def sound_alone(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44_100, layout="mono")
        silence = np.zeros((1, 1024), np.float32)
        # A single frame of silence makes a container that players open.
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def faceless(path: Path) -> None:
    picture = np.full((64, 64, 3), 90, np.uint8)
    seconds = [number / 10 for number in range(5)]
    write_clip(path, [picture] * 5, seconds)


# A row is what is wrong, the file that is drawn, and what is said of it.
PHOTOS: dict[str, tuple[Callable, str]] = {
    "no face": (grey, r"bad.png: no face\. Take a picture that shows one face"),
    "two faces": (twice, r"bad.png: two faces.*Cut the picture so that one face is left"),
    "head on its side": (on_its_side, r"bad.png: (no face|face not upright: turned by .* Turn the picture)"),
    "one pixel": (
        lambda path: Image.new("RGB", (1, 1)).save(path),
        r"bad.png: image too small: 1 x 1\. Take a larger picture",
    ),
    "not a picture": (noise, r"bad.png: "),
}
VIDEOS: dict[str, tuple[Callable, str]] = {
    "empty": (Path.touch, r"bad.mp4: empty file\. Copy it again"),
    "not a video": (noise, r"bad.mp4: cannot be read"),
    "sound alone": (sound_alone, r"bad.mp4: no video stream\. Name a file with pictures"),
    "no face in it": (faceless, r"bad.mp4: no face: in 5 of 5 frames"),
}


def refused(place: Path, files: list[Path], words: str) -> None:
    """Asserts that no film is made of `files`, and that this is said in few `words`."""
    with pytest.raises(UserError, match=words) as raised:
        list(
            animate_files(
                params(),
                weights_in(place),
                files,
                Path("out.mp4"),
                Look(),
            )
        )
    # A person reads it in a terminal.
    assert len(str(raised.value)) < 400
    assert not Path("out.mp4").exists()


@pytest.mark.parametrize("kind", PHOTOS)
def test_a_photo_that_shows_no_one_upright_face(kind, work):
    draw, words = PHOTOS[kind]
    bad = Path("bad.png")
    if draw in (twice, on_its_side):
        photo = Image.open(work / "photo.png")
        draw(bad, np.asarray(photo))
    else:
        draw(bad)
    refused(work, [bad, work / "first.mp4"], words)


@pytest.mark.parametrize("kind", VIDEOS)
def test_a_video_without_a_face_or_without_pictures(kind, work):
    draw, words = VIDEOS[kind]
    bad = Path("bad.mp4")
    draw(bad)
    refused(work, [work / "photo.png", bad], words)


def test_files_that_are_not_there(work):
    photo, video = work / "photo.png", work / "first.mp4"
    refused(work, [video], "needs a photo and a video")
    refused(work, [Path("absent.png"), video], "absent.png does not exist")
    refused(work, [photo, Path("absent.mp4")], "absent.mp4 does not exist")


def test_avatars_of_other_weights_and_damaged_ones(work):
    # What one Psi keeps of a photo means nothing to another one.
    studio = Studio(params(), weights_in(work))
    avatar = studio.avatar(work / "photo.png")
    good = Path("good.avatar")
    saved.save(good, avatar, studio.animator, "photo.png")
    other = Animator(save_networks(Path("other"), seed=2))
    words = r"made by other weights .*Make it again: psi4d avatar PHOTO -o good.avatar"
    with pytest.raises(UserError, match=words):
        saved.load(good, other)

    # One bit, the last hundred bytes, and all of it.
    data = bytearray(good.read_bytes())
    data[-100] ^= 1
    changed, short, strange = Path("changed.avatar"), Path("short.avatar"), Path("strange.avatar")
    changed.write_bytes(data)
    short.write_bytes(data[:-100])
    noise(strange)
    video = work / "first.mp4"
    refused(work, [changed, video], "changed.avatar is damaged: its checksum is another")
    refused(work, [short, video], "short.avatar is no avatar of psi4d, or is damaged")
    refused(work, [strange, video], "strange.avatar is no avatar of psi4d, or is damaged")


def test_networks_that_are_not_trained_yet(work):
    own, absent = weights_in(work), Path("absent.safetensors")
    with pytest.raises(UserError, match=r"nothing is trained yet\. Run `dvc repro train`"):
        Animator(Weights(absent, own.motion))
    with pytest.raises(UserError, match=r"nothing is trained yet\. Run `dvc repro pretrain@motion`"):
        Animator(Weights(own.psi, absent))


def test_networks_of_other_sizes(work):
    """A network of another kind, and a motion encoder that is wider than the one Psi was trained with."""
    own = weights_in(work)
    words = r"do not fit together: .*Make them by one run"
    with pytest.raises(UserError, match=words):
        Animator(Weights(own.motion, own.psi))
    # Both files are whole, but one was trained beside another Psi.
    sizes = params().networks.motion
    wider = replace(sizes, width=2 * sizes.width)
    encoder = MotionEncoder(wider)
    other = Path("wider.safetensors")
    save_weights(other, encoder.state_dict(), {"sizes": asdict(wider)})
    with pytest.raises(UserError, match=r"wider.safetensors has other sizes than this Psi"):
        Animator(Weights(own.psi, other))


def test_a_folder_that_cannot_be_made_is_said_before_any_work(work):
    with pytest.raises(UserError, match=r"cannot write /proc/.*Make the folder writable"):
        film_of(work, "/proc/a.mp4")
    assert not Path(".cache").exists()


def test_a_folder_that_is_read_only_is_said_before_any_work(work, tmp_path):
    """A mount without the right to write, which holds for the superuser as well."""
    place = tmp_path / "disk"
    with small_disk(place, 8192):
        libc = ctypes.CDLL(None, use_errno=True)
        assert not libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", MS_RDONLY | MS_REMOUNT, None)
        with pytest.raises(UserError, match=r"cannot write .*Read-only file system"):
            film_of(work, str(place / "a.mp4"))
        assert not list(place.iterdir())
    assert not Path(".cache").exists()


def test_a_full_disk_leaves_no_half_film(work, tmp_path):
    place = tmp_path / "disk"
    words = r"cannot write .*a.mp4: No space left on device.*free some space"
    with small_disk(place, 8192):
        with pytest.raises(UserError, match=words):
            film_of(work, str(place / "a.mp4"))
        # An orbit ends with a film as well, and is refused alike.
        studio = Studio(params(), weights_in(work))
        avatar = studio.avatar(work / "photo.png")
        with pytest.raises(UserError, match=words):
            orbit(studio.animator, avatar, place / "a.mp4", size=64)
        assert not list(place.iterdir())
