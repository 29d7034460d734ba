"""A photo, two videos and raw networks, for all tests of films."""

from pathlib import Path

import pytest

from tests.avatar.inputs import FRAMES, draw_frames, draw_photo, save_networks, write_clip


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """The folder with photo.png, first.mp4, second.mp4 and the networks."""
    folder = tmp_path_factory.mktemp("avatar")
    save_networks(folder)
    draw_photo(folder / "photo.png")
    # Ten frames a second, as few frames shall hold a movement.
    seconds = [number / 10 for number in range(FRAMES)]
    for name in ("first", "second"):
        frames = draw_frames(FRAMES, name)
        write_clip(folder / f"{name}.mp4", frames, seconds, "aac")
    return folder


@pytest.fixture
def work(place, tmp_path, monkeypatch) -> Path:
    """The same folder, while the current one is empty: scratch folders lie below it."""
    monkeypatch.chdir(tmp_path)
    return place
