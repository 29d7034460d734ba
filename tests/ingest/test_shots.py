"""One shot of a clip is used; black, uniform and frozen frames, and the other side of a cut, are not."""

import numpy as np

from pipeline.core.films import X264
from pipeline.ingest.shots import choose_frames, find_shots, moves
from pipeline.ingest.video import Video
from tests.ingest.films import write_film


def scene(place, seed=0, speed=2):
    """A bar that moves to and fro before a background of its own."""
    random = np.random.default_rng(seed)
    colours = random.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    block = np.ones((16, 16, 1), np.uint8)
    picture = np.kron(colours, block)
    left = abs((place * speed) % 80 - 40)
    picture[16:48, left : left + 16] = 250
    return picture


def scenes(start, end, seed=0):
    return [scene(place, seed) for place in range(start, end)]


def shots_of(path, pictures):
    # Otherwise x264 makes other bytes each time, and where a dissolve begins moves with them.
    film = write_film(path, pictures, options=X264)
    scan = Video(film).scan()
    return scan, find_shots(scan)


def test_one_shot(tmp_path):
    scan, shots = shots_of(tmp_path / "x.mp4", scenes(0, 60))
    assert shots.spans == [range(60)]
    assert shots.cuts == 0
    assert not shots.left_out
    assert moves(scan, range(60))


def test_cuts(tmp_path):
    film = scenes(0, 20, seed=1)
    film += scenes(0, 30, seed=2)
    film += scenes(20, 30, seed=1)
    _, shots = shots_of(tmp_path / "x.mp4", film)
    # The longest shot comes first.
    assert shots.spans == [range(20, 50), range(20), range(50, 60)]
    assert shots.cuts == 2


def test_black_and_cards(tmp_path):
    black = np.zeros((64, 64, 3), np.uint8)
    card = np.full((64, 64, 3), 180, np.uint8)
    film = [black] * 10
    film += scenes(0, 30)
    film += [card] * 5
    _, shots = shots_of(tmp_path / "x.mp4", film)
    assert shots.spans == [range(10, 40)]
    assert shots.cuts == 0
    assert shots.left_out == {"uniform": 15}


def test_a_photo_as_a_film_does_not_move(tmp_path):
    noise = np.random.default_rng(0)
    photos = []
    for _ in range(50):
        grain = noise.normal(0, 3, (64, 64, 3))
        photo = np.clip(scene(3) + grain, 0, 255)
        photos.append(photo.astype(np.uint8))
    films = {
        "still.mp4": [scene(3)] * 50,
        # The grain of a real photo that was filmed.
        "noisy.mp4": photos,
    }
    for name, pictures in films.items():
        scan, shots = shots_of(tmp_path / name, pictures)
        assert shots.spans == [range(50)]
        assert not moves(scan, range(50))


def test_a_film_that_stands_still_in_the_middle(tmp_path):
    film = scenes(0, 30)
    film += [film[-1]] * 40
    film += scenes(30, 50)
    _, shots = shots_of(tmp_path / "x.mp4", film)
    assert 35 <= shots.left_out["frozen"] <= 42
    longest = shots.spans[0]
    assert longest.start == 0
    assert 28 <= longest.stop <= 33


def test_frames_are_spread_over_the_span():
    for count in (0, 5, 24):
        assert choose_frames(range(count), 24) == list(range(count))
    # The middles of four equal parts.
    quarters = choose_frames(range(10, 1010), 4)
    assert quarters == [135, 385, 635, 885]
    span = range(7, 1003)
    chosen = choose_frames(span, 200)
    assert len(chosen) == 200
    assert set(chosen) <= set(span)
    steps = np.diff(chosen)
    assert set(steps) <= {4, 5}


def test_dissolves_and_fades(tmp_path):
    film = scenes(0, 30, seed=1)
    for place in range(30, 50):
        share = (place - 29) / 21
        before = scene(place, 1)
        after = scene(place, 2)
        mixed = before * (1 - share) + after * share
        film.append(mixed.astype(np.uint8))
    film += scenes(50, 80, seed=2)
    _, shots = shots_of(tmp_path / "x.mp4", film)
    longest = shots.spans[:2]
    early, late = sorted(longest, key=lambda span: span.start)
    # Where a dissolve begins and ends is not seen to the frame.
    assert early.start == 0
    assert 20 <= early.stop <= 36
    assert 44 <= late.start <= 66
    assert late.stop == 80
    assert shots.cuts > 0
    assert shots.left_out["transition"] > 10
