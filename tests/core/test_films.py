"""Films are read again by PyAV: their pictures, times, rate and length."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from pipeline.core.films import encode_mp4, frame_rate

LEVELS = (0, 100, 200, 50)


def pictures():
    return (np.full((32, 64, 3), level, np.uint8) for level in LEVELS)


def read(film: bytes) -> tuple[Fraction, float, list[float], list[int]]:
    """Rate, length in seconds, the time of every picture and its brightness to the nearest ten."""
    times, levels = [], []
    with av.open(io.BytesIO(film)) as container:
        stream = container.streams.video[0]
        length = float(stream.duration * stream.time_base)
        for frame in container.decode(video=0):
            picture = frame.to_ndarray(format="rgb24")
            times.append(frame.time)
            levels.append(round(picture.mean(), -1))
        return stream.average_rate, length, times, levels


@pytest.mark.parametrize("rate", [12, 25, Fraction(30000, 1001), Fraction(24000, 1001)])
def test_a_film_has_its_rate_and_length(rate):
    found, length, times, levels = read(encode_mp4(pictures(), rate))
    assert found == rate
    assert length == pytest.approx(4 / rate, abs=1e-3)
    wanted = [i / rate for i in range(4)]
    assert times == pytest.approx(wanted, abs=1e-3)
    assert levels == list(LEVELS)


def test_equal_pictures_are_equal_bytes():
    # DVC would take a film with a date in its header for a new one.
    assert encode_mp4(pictures(), 12) == encode_mp4(pictures(), 12)
    seconds = [0, 1, 2, 3]
    assert encode_mp4(pictures(), 12, seconds) == encode_mp4(pictures(), 12, seconds)


def test_a_film_keeps_the_times_it_is_given():
    """The second picture is held, and the last one is shown for as long as the rate says."""
    seconds = [0.0, 0.04, 0.2, 0.25]
    _, length, times, levels = read(encode_mp4(pictures(), 25, seconds))
    assert times == pytest.approx(seconds, abs=1e-4)
    assert length == pytest.approx(0.29, abs=1e-4)
    assert levels == list(LEVELS)


def test_even_times_are_the_same_film_as_a_rate():
    rate = Fraction(30000, 1001)
    seconds = [float(i / rate) for i in range(4)]
    found, length, _, _ = read(encode_mp4(pictures(), rate, seconds))
    assert found == rate
    assert length == pytest.approx(float(4 / rate), abs=1e-4)


@pytest.mark.parametrize(
    "seconds",
    [
        [0.0, 0.1, 0.2],
        [0.0, 0.1, 0.2, 0.3, 0.4],
        [0.0, 0.2, 0.1, 0.3],
    ],
)
def test_times_that_do_not_fit_the_pictures_are_refused(seconds):
    with pytest.raises(ValueError, match=r"ascend|shorter|longer"):
        encode_mp4(pictures(), 25, seconds)


def test_the_rate_behind_a_mean():
    # Containers say the mean as a fraction or as a decimal.
    assert frame_rate(5.0) == 5
    assert frame_rate(29.97002997002997) == Fraction(30000, 1001)
    assert frame_rate(23.976023976) == Fraction(24000, 1001)
    with pytest.raises(ValueError, match="positive"):
        frame_rate(0.0)
