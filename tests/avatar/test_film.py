"""A film has the times and the sound of its driver, read back by PyAV."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.avatar.driver import frames_of
from pipeline.avatar.film import with_sound
from pipeline.core.errors import UserError
from pipeline.core.films import encode_mp4, frame_rate
from tests.avatar.inputs import write_clip

COUNT = 40
NTSC = Fraction(30_000, 1001)
RATES = {"25": Fraction(25), "29.97": NTSC, "30": Fraction(30), "variable": None}


def times(kind: str) -> list[float]:
    rate = RATES[kind]
    if rate is None:
        # A telephone's camera: 30 frames a second, 15 in the dark, and one that comes late.
        steps = np.where(np.arange(COUNT) < 20, 1 / 30, 1 / 15)
        steps[30] = 0.31
        return [0.0, *np.cumsum(steps)[:-1].tolist()]
    return [float(number / rate) for number in range(COUNT)]


def grey(count: int = COUNT) -> list[np.ndarray]:
    return [np.full((64, 64, 3), 3 * number, np.uint8) for number in range(count)]


def film_of(path) -> bytes:
    """What `animate` does with a driver, with its own pictures in place of results."""
    seconds, pictures = [], []
    for second, picture in frames_of(path, 25).read():
        seconds.append(second)
        pictures.append(picture)
    step = float(np.median(np.diff(seconds)))
    film = encode_mp4(pictures, frame_rate(1 / step), seconds)
    return with_sound(film, path) or film


def video_facts(path) -> tuple[list[float], float]:
    """When each frame is shown, and how long the film says it is, in seconds."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        shown = [frame.time for frame in container.decode(video=0)]
        return shown, float(stream.duration * stream.time_base)


def sound_packets(path) -> tuple[list[float], list[bytes]]:
    """When each packet of sound is heard, in seconds, and what it holds."""
    times, contents = [], []
    with av.open(str(path)) as container:
        for packet in container.demux(audio=0):
            if packet.size:
                times.append(float(packet.pts * packet.time_base))
                contents.append(bytes(packet))
    return times, contents


def mean_rate(path) -> float:
    """Frames a second over the whole film."""
    with av.open(str(path)) as container:
        return float(container.streams.video[0].average_rate)


def has_sound(path) -> bool:
    with av.open(str(path)) as container:
        return bool(container.streams.audio)


def write_film(driver: Path) -> Path:
    """The film by `driver`, beside it."""
    film = driver.with_name("film.mp4")
    film.write_bytes(film_of(driver))
    return film


@pytest.mark.parametrize("sound", ["", "aac"])
@pytest.mark.parametrize("kind", list(RATES))
def test_rate_and_length_are_those_of_the_driver(tmp_path, kind, sound):
    driver = write_clip(tmp_path / "driver.mp4", grey(), times(kind), sound)
    film = write_film(driver)
    wanted, _ = video_facts(driver)
    found, seconds = video_facts(film)
    # A tick of the film is 1/90,000 s; decord's times have single precision.
    assert np.allclose(found, wanted, atol=2e-5)
    rate = RATES[kind]
    frame = 1 / float(rate or 15)
    assert abs(seconds - (wanted[-1] + frame)) <= frame
    # A container may count its last frame in or out.
    assert mean_rate(film) == pytest.approx(mean_rate(driver), rel=0.05)
    if rate is not None:
        assert mean_rate(film) == pytest.approx(float(rate), rel=1e-4)
    assert has_sound(film) == bool(sound)


@pytest.mark.parametrize("kind", list(RATES))
def test_sound_is_copied_and_keeps_its_place(tmp_path, kind):
    driver = write_clip(tmp_path / "driver.mp4", grey(), times(kind), "aac")
    film = write_film(driver)
    wanted_times, wanted = sound_packets(driver)
    found_times, found = sound_packets(film)
    assert found == wanted
    assert np.allclose(found_times, wanted_times, atol=1e-4)


def test_a_sound_that_mp4_does_not_take_is_encoded_anew_and_is_as_long(tmp_path):
    driver = write_clip(tmp_path / "driver.mkv", grey(), times("25"), "pcm_s16le")
    film = write_film(driver)
    with av.open(str(film)) as container:
        sound = container.streams.audio[0]
        assert sound.codec_context.name == "aac"
        heard = 0.0
        for frame in container.decode(audio=0):
            heard += frame.samples / frame.rate
    assert heard == pytest.approx(times("25")[-1], abs=0.05)


def test_equal_inputs_make_equal_bytes(tmp_path):
    driver = write_clip(tmp_path / "driver.mp4", grey(), times("variable"), "aac")
    assert film_of(driver) == film_of(driver)


def test_a_folder_of_pictures_is_read_in_the_order_of_its_numbers(tmp_path):
    # By name, frame10 comes before frame2.
    for number, picture in enumerate(grey(12)):
        Image.fromarray(picture).save(tmp_path / f"frame{number}.png")
    frames = frames_of(tmp_path, 10)
    assert frames.sound is None
    for number, (second, picture) in enumerate(frames.read()):
        assert second == number / 10
        assert picture[0, 0, 0] == 3 * number
    assert number == 11


def test_a_folder_without_pictures_drives_nothing(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    assert not list(frames_of(tmp_path, 25).read())
    with pytest.raises(UserError, match=r"absent.mp4: cannot be read"):
        frames_of(tmp_path / "absent.mp4", 25)
