"""A film has the times and the sound of its driver, read back by PyAV."""

from fractions import Fraction

import av
import numpy as np
import pytest

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
    frames = frames_of(path, 25)
    read = list(frames.read())
    seconds = [second for second, _ in read]
    rate = frame_rate(1 / float(np.median(np.diff(seconds))))
    film = encode_mp4((picture for _, picture in read), rate, seconds)
    return with_sound(film, path) or film


def video_facts(path) -> tuple[list[float], float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        shown = [frame.time for frame in container.decode(video=0)]
        return shown, float(stream.duration * stream.time_base)


def sound_packets(path) -> list[tuple[float, bytes]]:
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size]
        return [(float(packet.pts * packet.time_base), bytes(packet)) for packet in packets]


@pytest.mark.parametrize("sound", ["", "aac"])
@pytest.mark.parametrize("kind", list(RATES))
def test_rate_length_and_sound_are_those_of_the_driver(tmp_path, kind, sound):
    driver = write_clip(tmp_path / "driver.mp4", grey(), times(kind), sound)
    (tmp_path / "film.mp4").write_bytes(film_of(driver))
    wanted, _ = video_facts(driver)
    found, seconds = video_facts(tmp_path / "film.mp4")
    # A tick of the film is 1/90,000 s; decord's times have single precision.
    assert np.allclose(found, wanted, atol=2e-5)
    frame = 1 / float(RATES[kind] or 15)
    assert abs(seconds - (wanted[-1] + frame)) <= frame
    with av.open(str(tmp_path / "film.mp4")) as film, av.open(str(driver)) as original:
        rate, own = film.streams.video[0].average_rate, original.streams.video[0].average_rate
        # A container may count its last frame in or out.
        assert float(rate) == pytest.approx(float(own), rel=0.05)
        assert RATES[kind] is None or float(rate) == pytest.approx(float(RATES[kind]), rel=1e-4)
        assert bool(film.streams.audio) == bool(sound)
    if sound:
        copied, original = sound_packets(tmp_path / "film.mp4"), sound_packets(driver)
        assert [data for _, data in copied] == [data for _, data in original]
        assert np.allclose([time for time, _ in copied], [time for time, _ in original], atol=1e-4)


def test_a_sound_that_mp4_does_not_take_is_encoded_anew_and_is_as_long(tmp_path):
    driver = write_clip(tmp_path / "driver.mkv", grey(), times("25"), "pcm_s16le")
    (tmp_path / "film.mp4").write_bytes(film_of(driver))
    with av.open(str(tmp_path / "film.mp4")) as film:
        assert film.streams.audio[0].codec_context.name == "aac"
        heard = sum(frame.samples / frame.rate for frame in film.decode(audio=0))
    assert heard == pytest.approx(times("25")[-1], abs=0.05)


def test_equal_inputs_make_equal_bytes(tmp_path):
    driver = write_clip(tmp_path / "driver.mp4", grey(), times("variable"), "aac")
    assert film_of(driver) == film_of(driver)


def test_a_folder_of_pictures_is_read_in_the_order_of_its_numbers(tmp_path):
    import cv2

    for number, picture in enumerate(grey(12)):
        cv2.imwrite(str(tmp_path / f"frame{number}.png"), picture)
    frames = frames_of(tmp_path, 10)
    read = list(frames.read())
    assert [int(picture[0, 0, 0]) for _, picture in read] == [3 * number for number in range(12)]
    assert [seconds for seconds, _ in read] == [number / 10 for number in range(12)]
    assert frames.sound is None


def test_a_folder_without_pictures_drives_nothing(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    assert not list(frames_of(tmp_path, 25).read())
    with pytest.raises(UserError, match=r"absent.mp4: cannot be read"):
        frames_of(tmp_path / "absent.mp4", 25)
