"""The back of a mesh is one skull, whatever the density says there; its front is what it was."""

import numpy as np
import pytest
import torch

from model.head.flame import SCALE, Flame
from pipeline.avatar.skull import FADE, SEAM, SIDE, Skull, skull_of
from pipeline.geometry.head_model import load
from pipeline.geometry.label import head_vertices

BOX = 1.0  # world units
SIZE = 48  # points of the density's grid
RADIUS, HAIR = 0.08, 0.02  # metres


def grid(size: int) -> np.ndarray:
    """Places of the points of a grid, metres, (size, size, size, 3)."""
    axis = ((np.arange(size) + 0.5) / size - 0.5) * BOX / SCALE
    axes = np.meshgrid(axis, axis, axis, indexing="ij")
    return np.stack(axes, axis=-1)


@pytest.fixture(scope="module")
def ball() -> Skull:
    """A skull that is a ball about the origin."""
    radius = np.linalg.norm(grid(SIDE), axis=-1)
    return Skull(radius - RADIUS)


@pytest.fixture(scope="module")
def density() -> np.ndarray:
    """A head with hair all over it, whose back is a hole; 10 within and -10 without."""
    places = grid(SIZE)
    radius = np.linalg.norm(places, axis=-1)
    soft = (RADIUS + HAIR - radius) / 0.01
    whole = 10 * soft.clip(-1, 1)
    return np.where(places[..., 2] < SEAM - FADE, -10.0, whole)


def test_the_skull_grown_by_the_hair_closes_the_back(ball, density):
    closed = ball.closed(density, 0.0, BOX)
    places = grid(SIZE)
    radius = np.linalg.norm(places, axis=-1)
    cell = BOX / SCALE / SIZE
    # The surface is right to a cell, before, in and behind the seam.
    assert (closed[radius < RADIUS + HAIR - cell] > 0).all()
    assert (closed[radius > RADIUS + HAIR + cell] < 0).all()


def test_the_front_stays_as_it_is(ball, density):
    closed = ball.closed(density, 0.0, BOX)
    ahead = grid(SIZE)[0, 0, :, 2] > SEAM + FADE / 2
    assert np.array_equal(closed[..., ahead], density[..., ahead])


def test_the_fitted_head_is_solid_within_its_vertices():
    flame = Flame(load("standin"))
    # The average shape, at rest.
    label = np.zeros(437, np.float32)
    skull = skull_of(flame, label, BOX)
    places = grid(SIDE)
    radius = np.linalg.norm(places, axis=-1)
    assert (skull.distance_NNN[radius < 0.04] < 0).all()
    # Below is the bust, as far as the box goes.
    above = places[..., 1] > 0
    assert (skull.distance_NNN[above & (radius > 0.17)] > 0).all()
    # The back of the head lies where its rearmost vertex is; a surface is known to a cell.
    head = head_vertices(flame, torch.from_numpy(label)[None])[0].numpy() / SCALE
    rearmost = head[head[:, 1] > 0][:, 2].min()
    inside = skull.distance_NNN[:, SIDE // 2 :] < 0
    found = places[:, SIDE // 2 :][inside][:, 2].min()
    assert found == pytest.approx(rearmost, abs=1.5 * BOX / SCALE / SIDE)


def test_colours_behind_are_those_of_the_seam_nearby(ball):
    depths = np.linspace(-0.1, 0.1, 401)
    left = np.stack([np.full(401, -0.05), np.zeros(401), depths], axis=1)
    right = left * [-1, 1, 1]
    vertices = np.concatenate([left, right])
    colours = np.full((802, 3), 7, np.uint8)
    colours[:401], colours[401:] = (200, 0, 0), (0, 0, 200)
    # What the decoder says behind the seam.
    wrong = colours.copy()
    wrong[vertices[:, 2] < SEAM] = (0, 255, 0)
    assert np.array_equal(ball.painted(vertices, wrong), colours)
