"""Hair as a second surface over the skull: from the crown to a hairline that depends on the person, hanging freely when long."""

import numpy as np

from pipeline.geometry.mesh import grid_faces
from pipeline.geometry.standin_skull import Surface
from pipeline.synthetic.person import Person

ROWS, COLUMNS = 16, 72
HANG = np.radians(98)  # polar angle from the crown beyond which hair hangs straight down
TILT = 0.12  # the crown lies behind the top of the skull
CENTRE = np.array([0.0, 0.0, -0.02])


def cover(person: Person) -> float:
    """How much hair there is on the scalp, 0 (bald) to 1."""
    return float(np.clip((person.trait["length"] - 0.06) / 0.08, 0, 1))


def over_ears(person: Person) -> float:
    """How far the ears are under the hair, 0 to 1."""
    return float(np.clip((person.trait["length"] - 0.50) / 0.10, 0, 1))


def hair_faces() -> np.ndarray:
    """Triangles of the hair, counter-clockwise from outside."""
    return grid_faces(ROWS, COLUMNS)


def hair_grid() -> np.ndarray:
    """(ROWS*COLUMNS, 2): along the strand in [0, 1] and angle around the crown (0 = front)."""
    s, turn = np.meshgrid(np.linspace(0, 1, ROWS), 2 * np.pi * np.arange(COLUMNS) / COLUMNS, indexing="ij")
    return np.stack([s, turn], -1).reshape(-1, 2)


def hairline(person: Person, turn: np.ndarray) -> np.ndarray:
    """Polar angle from the crown at which the hair ends, for angles around the crown (0 = front)."""
    trait = person.trait
    side = np.abs((turn + np.pi) % (2 * np.pi) - np.pi)
    fringe = np.clip((trait["fringe"] - 0.68) / 0.25, 0, 1)
    recede = (
        (1 - fringe)
        * np.exp(-(((side - 0.62) / 0.26) ** 2))
        * (3 + 7 * trait["age"] * np.clip(2 * trait["beard"], 0, 1))
    )
    front = np.radians(48.5 - recede + 15 * fringe) + 0.07 * np.sin(turn + 6 * (trait["parting"] - 0.5))
    length = trait["length"]
    nape = np.radians(np.interp(length, [0, 0.45, 0.55, 1.0], [96, 122, 140, 265]))
    temple = np.radians(np.interp(length, [0, 0.45, 0.55, 1.0], [80, 92, 130, 260]))
    back = np.clip((side - 1.5) / 0.6, 0, 1)
    low = temple + (nape - temple) * back * back * (3 - 2 * back)
    t = np.clip((side - 0.88) / (0.62 - 0.22 * over_ears(person)), 0, 1)
    return front + (low - front) * t * t * (3 - 2 * t)


def hair_points(person: Person, surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Template positions (ROWS*COLUMNS, 3), world units, and outward direction of thickness (same shape) of the person's hair."""
    trait, grid = person.trait, hair_grid()
    s, turn = grid.T
    ragged = 0.035 * np.sin(turn * 23 + person.phase[0]) * np.sin(turn * 9 + person.phase[1])
    polar = s * (hairline(person, turn) + ragged * (0.6 + trait["length"]))
    on_skull = np.minimum(polar, HANG)
    direction = np.stack(
        [np.sin(on_skull) * np.sin(turn), np.cos(on_skull), np.sin(on_skull) * np.cos(turn)], -1
    )
    c, n = np.cos(TILT), np.sin(TILT)
    direction = direction @ np.array([[1, 0, 0], [0, c, -n], [0, n, c]])  # tips the crown backwards
    skin = surface(direction)
    side = np.abs((turn + np.pi) % (2 * np.pi) - np.pi)
    volume = (
        0.012
        + 0.055 * trait["volume"] * (0.35 + 0.65 * np.clip(trait["length"] * 1.8, 0, 1))
        + 0.018 * over_ears(person)
    )
    edge = np.where(polar < HANG + 0.1, np.clip((1 - s) / 0.22, 0, 1) ** 0.6, 1.0)
    edge = np.maximum(edge, 0.10 + 0.5 * np.clip((trait["fringe"] - 0.68) / 0.25, 0, 1) * (side < 1.0))
    part = (
        np.exp(-(((side - 0.12) * np.sin(on_skull) / 0.06) ** 2))
        * (side < 1.4)
        * np.exp(-(((on_skull - 0.5) / 0.5) ** 2))
    )
    wave = np.sin(turn * 7 + 5 * polar + person.phase[2]) * np.sin(3 * turn + 7 * polar + person.phase[3])
    bumps = trait["wave"] * np.sin(13 * turn + person.phase[4]) * np.sin(17 * polar + person.phase[5])
    quiff = (
        (1 - trait["fringe"])
        * trait["volume"]
        * np.exp(-(((side - 0.1) / 0.8) ** 2))
        * np.exp(-(((s - 0.75) / 0.22) ** 2))
    )
    thick = (
        cover(person) * volume * edge * (1 - 0.35 * part + 0.16 * wave + 0.25 * bumps + 1.1 * quiff) + 0.004
    )
    points = skin + direction * thick[:, None]
    hang = np.clip(polar - HANG, 0, None)
    points[:, 1] -= 0.19 * hang
    points[:, [0, 2]] *= (
        1 + 0.10 * np.sin(1.1 * hang) - 0.03 * hang + 0.015 * trait["wave"] * np.sin(6 * hang + 5 * turn)
    )[:, None]
    return points, direction
