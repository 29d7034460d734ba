"""Hair as a second surface over the skull.

It goes from the crown to a hairline that depends on the person, and hangs freely when it is long.
"""

import numpy as np

from pipeline.geometry.mesh import grid_faces
from pipeline.geometry.standin_skull import Surface
from pipeline.synthetic.person import Person

ROWS, COLUMNS = 16, 72
HANG = np.radians(98)  # polar angle from the crown beyond which hair hangs straight down
TILT = 0.12  # radians: the crown lies behind the top of the skull
# Where hair ends at the nape and at the temples, degrees from the crown, for lengths between shaven and long.
# The leap in the middle is where it begins to cover the ears.
LENGTHS = [0, 0.45, 0.55, 1.0]
NAPE = [96, 122, 140, 265]
TEMPLE = [80, 92, 130, 260]


def cover(person: Person) -> float:
    """How much hair there is on the scalp, 0 (bald) to 1."""
    return float(np.clip((person.trait["length"] - 0.06) / 0.08, 0, 1))


def over_ears(person: Person) -> float:
    """How far the ears are under the hair, 0 to 1."""
    return float(np.clip((person.trait["length"] - 0.50) / 0.10, 0, 1))


def fringe(person: Person) -> float:
    """How far hair falls into the forehead, 0 to 1."""
    return np.clip((person.trait["fringe"] - 0.68) / 0.25, 0, 1)


def hair_faces() -> np.ndarray:
    """Triangles of the hair, counter-clockwise from outside."""
    return grid_faces(ROWS, COLUMNS)


def hair_grid() -> np.ndarray:
    """(ROWS*COLUMNS, 2): along the strand in [0, 1] and angle around the crown (0 = front)."""
    along = np.linspace(0, 1, ROWS)
    around = 2 * np.pi * np.arange(COLUMNS) / COLUMNS
    grid = np.meshgrid(along, around, indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 2)


def hairline(person: Person, turn: np.ndarray) -> np.ndarray:
    """Polar angle from the crown at which the hair ends, for angles around the crown (0 = front)."""
    trait = person.trait
    side = _from_front(turn)
    # Hair recedes above the temples, most with old men, whom a beard betrays.
    bays = (1 - fringe(person)) * np.exp(-(((side - 0.62) / 0.26) ** 2))
    recede = bays * (3 + 7 * trait["age"] * np.clip(2 * trait["beard"], 0, 1))
    uneven = 0.07 * np.sin(turn + 6 * (trait["parting"] - 0.5))
    front = np.radians(48.5 - recede + 15 * fringe(person)) + uneven
    nape = np.radians(np.interp(trait["length"], LENGTHS, NAPE))
    temple = np.radians(np.interp(trait["length"], LENGTHS, TEMPLE))
    # Smooth steps from the temple to the nape, and from the forehead to both. They are multiplied out from
    # the left, as the last bits of all people are.
    back = np.clip((side - 1.5) / 0.6, 0, 1)
    low = temple + (nape - temple) * back * back * (3 - 2 * back)
    t = np.clip((side - 0.88) / (0.62 - 0.22 * over_ears(person)), 0, 1)
    return front + (low - front) * t * t * (3 - 2 * t)


def hair_points(person: Person, surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Template positions and outward directions of a person's hair, both (ROWS*COLUMNS, 3), world units."""
    trait = person.trait
    s, turn = hair_grid().T
    phase = person.phase
    ragged = 0.035 * np.sin(turn * 23 + phase[0]) * np.sin(turn * 9 + phase[1])
    polar = s * (hairline(person, turn) + ragged * (0.6 + trait["length"]))
    direction = _directions(np.minimum(polar, HANG), turn)
    thick = _thickness(person, s, turn, polar)
    points = surface(direction) + direction * thick[:, None]
    # What is longer than the skull hangs down: a little wider first, then closer to the neck.
    hang = np.clip(polar - HANG, 0, None)
    points[:, 1] -= 0.19 * hang
    curl = 0.015 * trait["wave"] * np.sin(6 * hang + 5 * turn)
    wider = 1 + 0.10 * np.sin(1.1 * hang) - 0.03 * hang + curl
    points[:, [0, 2]] *= wider[:, None]
    return points, direction


def _from_front(turn: np.ndarray) -> np.ndarray:
    """The angle around the crown without its sign, 0 to pi."""
    return np.abs((turn + np.pi) % (2 * np.pi) - np.pi)


def _directions(polar: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Unit directions (N, 3) from the middle of the skull, about a crown that is tipped backwards."""
    across = np.sin(polar)
    upright = np.stack([across * np.sin(turn), np.cos(polar), across * np.cos(turn)], axis=-1)
    c = np.cos(TILT)
    n = np.sin(TILT)
    return upright @ np.array([[1, 0, 0], [0, c, -n], [0, n, c]])


def _thickness(
    person: Person,
    s: np.ndarray,
    turn: np.ndarray,
    polar: np.ndarray,
) -> np.ndarray:
    """How far the surface of the hair is from the skin, (N,) world units."""
    trait = person.trait
    side = _from_front(turn)
    on_skull = np.minimum(polar, HANG)
    fullness = 0.35 + 0.65 * np.clip(trait["length"] * 1.8, 0, 1)
    volume = 0.012 + 0.055 * trait["volume"] * fullness + 0.018 * over_ears(person)
    # Hair that ends on the skin thins out there; a fringe does not.
    ends = np.clip((1 - s) / 0.22, 0, 1) ** 0.6
    edge = np.where(polar < HANG + 0.1, ends, 1.0)
    edge = np.maximum(edge, 0.10 + 0.5 * fringe(person) * (side < 1.0))
    from_parting = (side - 0.12) * np.sin(on_skull) / 0.06
    on_top = np.exp(-(((on_skull - 0.5) / 0.5) ** 2))
    part = np.exp(-(from_parting**2)) * (side < 1.4) * on_top
    phase = person.phase
    waves = np.sin(turn * 7 + 5 * polar + phase[2])
    across = np.sin(3 * turn + 7 * polar + phase[3])
    around = np.sin(13 * turn + phase[4])
    along = np.sin(17 * polar + phase[5])
    bumps = trait["wave"] * around * along
    in_front = np.exp(-(((side - 0.1) / 0.8) ** 2))
    at_hairline = np.exp(-(((s - 0.75) / 0.22) ** 2))
    quiff = (1 - trait["fringe"]) * trait["volume"] * in_front * at_hairline
    shape = 1 - 0.35 * part + 0.16 * (waves * across) + 0.25 * bumps + 1.1 * quiff
    return cover(person) * volume * edge * shape + 0.004
