"""Hair as a second surface over the skull.

It goes from the crown to a hairline that depends on the person, and hangs freely when it is long.
"""

import numpy as np

from pipeline.geometry.curves import circle, ramp
from pipeline.geometry.mesh import grid_faces
from pipeline.geometry.standin_skull import Surface
from pipeline.synthetic.person import Person

ROWS, COLUMNS = 16, 72
HANG = np.radians(98)  # polar angle from the crown beyond which hair hangs straight down
TILT = 0.12  # radians: the crown lies behind the top of the skull
# Where hair ends for lengths between shaven and long: length, degrees from the crown at the nape and at the
# temples. The leap in the middle is where it begins to cover the ears.
ENDS = np.array(
    [
        (0.00, 96, 80),
        (0.45, 122, 92),
        (0.55, 140, 130),
        (1.00, 265, 260),
    ]
)
LENGTHS, NAPE, TEMPLE = ENDS.T


def cover(person: Person) -> float:
    """How much hair there is on the scalp, 0 (bald) to 1."""
    length = person.trait["length"]
    return float(ramp(length, start=0.06, width=0.08))


def over_ears(person: Person) -> float:
    """How far the ears are under the hair, 0 to 1."""
    length = person.trait["length"]
    return float(ramp(length, start=0.50, width=0.10))


def fringe(person: Person) -> float:
    """How far hair falls into the forehead, 0 to 1."""
    return ramp(person.trait["fringe"], start=0.68, width=0.25)


def hair_faces() -> np.ndarray:
    """Triangles of the hair, counter-clockwise from outside."""
    return grid_faces(ROWS, COLUMNS)


def hair_grid() -> np.ndarray:
    """(ROWS*COLUMNS, 2): along the strand in [0, 1] and angle around the crown (0 = front)."""
    along = np.linspace(0, 1, ROWS)
    grid = np.meshgrid(along, circle(COLUMNS), indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 2)


def hairline(person: Person, turn: np.ndarray) -> np.ndarray:
    """Polar angle from the crown at which the hair ends, for angles around the crown (0 = front)."""
    side = _from_front(turn)
    length = person.trait["length"]
    nape = np.interp(length, LENGTHS, NAPE)
    temple = np.interp(length, LENGTHS, TEMPLE)
    behind_temple = ramp(side, start=1.5, width=0.6)
    low = _ease(np.radians(temple), np.radians(nape), behind_temple)
    # Hair over the ears leaves the forehead more steeply, so that no ear looks out.
    rise = 0.62 - 0.22 * over_ears(person)
    behind_forehead = ramp(side, start=0.88, width=rise)
    front = _front_line(person, turn)
    return _ease(front, low, behind_forehead)


def _front_line(person: Person, turn: np.ndarray) -> np.ndarray:
    """The hairline as it would be all around if the head had no temples and no nape."""
    trait = person.trait
    side = _from_front(turn)
    fallen = fringe(person)
    # Hair recedes above the temples, most with old men, whom a beard betrays.
    male = np.clip(2 * trait["beard"], 0, 1)
    bays = (1 - fallen) * _bell(side, 0.62, 0.26)
    old = 7 * trait["age"] * male
    recede = bays * (3 + old)
    askew = 6 * (trait["parting"] - 0.5)
    uneven = 0.07 * np.sin(turn + askew)
    degrees = 48.5 - recede + 15 * fallen
    return np.radians(degrees) + uneven


def hair_points(person: Person, surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Template positions and outward directions of a person's hair, both (ROWS*COLUMNS, 3), world units."""
    s, turn = hair_grid().T
    polar = s * _ends(person, turn)
    on_skull = np.minimum(polar, HANG)
    direction = _directions(on_skull, turn)
    thick = _thickness(person, s, turn, polar)
    skin = surface(direction)
    points = skin + direction * thick[:, None]
    # What is longer than the skull hangs down.
    hang = np.clip(polar - HANG, 0, None)
    width = _hanging_width(person, turn, hang)
    points[:, 1] -= 0.19 * hang
    points[:, [0, 2]] *= width[:, None]
    return points, direction


def _hanging_width(
    person: Person,
    turn: np.ndarray,
    hang: np.ndarray,
) -> np.ndarray:
    """Width of the hair relative to the skull: a little wider first, then closer to the neck."""
    bulge = 0.10 * np.sin(1.1 * hang)
    closer = 0.03 * hang
    curls = np.sin(6 * hang + 5 * turn)
    curl = 0.015 * person.trait["wave"] * curls
    return 1 + bulge - closer + curl


def _ends(person: Person, turn: np.ndarray) -> np.ndarray:
    """Polar angle of the tips: the hairline, ragged by uneven strands, the more the longer they are."""
    phase = person.phase
    fine = np.sin(turn * 23 + phase[0])
    coarse = np.sin(turn * 9 + phase[1])
    ragged = 0.035 * fine * coarse
    amount = 0.6 + person.trait["length"]
    even = hairline(person, turn)
    return even + ragged * amount


def _from_front(turn: np.ndarray) -> np.ndarray:
    """The angle around the crown without its sign, 0 to pi."""
    wrapped = (turn + np.pi) % (2 * np.pi)
    return np.abs(wrapped - np.pi)


def _bell(x: np.ndarray, centre: float, width: float) -> np.ndarray:
    """1 at the centre, 1/e at `width` from it."""
    offset = (x - centre) / width
    return np.exp(-(offset**2))


def _ease(
    start: np.ndarray | float,
    end: np.ndarray | float,
    t: np.ndarray,
) -> np.ndarray:
    """From `start` at t = 0 to `end` at t = 1, level at both."""
    # The product is formed from the left: with `smoothstep` the last bits of all people would change.
    return start + (end - start) * t * t * (3 - 2 * t)


def _directions(polar: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Unit directions (N, 3) from the middle of the skull, about a crown that is tipped backwards."""
    across = np.sin(polar)
    x = across * np.sin(turn)
    y = np.cos(polar)
    z = across * np.cos(turn)
    upright = np.stack([x, y, z], axis=-1)
    c = np.cos(TILT)
    n = np.sin(TILT)
    tip = np.array(
        [
            [1, 0, 0],
            [0, c, -n],
            [0, n, c],
        ]
    )
    return upright @ tip


def _thickness(
    person: Person,
    s: np.ndarray,
    turn: np.ndarray,
    polar: np.ndarray,
) -> np.ndarray:
    """How far the surface of the hair is from the skin, (N,) world units."""
    side = _from_front(turn)
    edge = _edge(person, s, side, polar)
    part = _part(side, polar)
    waves = _waves(person, turn, polar)
    bumps = _bumps(person, turn, polar)
    quiff = _quiff(person, s, side)
    relief = 1 - 0.35 * part + 0.16 * waves + 0.25 * bumps
    shape = relief + 1.1 * quiff
    volume = cover(person) * _volume(person)
    return volume * edge * shape + 0.004


def _volume(person: Person) -> float:
    """The thickness of the hair before its shape is taken into account, world units."""
    trait = person.trait
    grown = np.clip(trait["length"] * 1.8, 0, 1)
    fullness = 0.35 + 0.65 * grown
    styled = 0.055 * trait["volume"] * fullness
    # Hair over the ears must not let them through.
    padding = 0.018 * over_ears(person)
    return 0.012 + styled + padding


def _edge(
    person: Person,
    s: np.ndarray,
    side: np.ndarray,
    polar: np.ndarray,
) -> np.ndarray:
    """How much of the thickness is left towards the tips, 0 to 1."""
    # Hair that ends on the skin thins out there; a fringe does not.
    from_tip = np.clip((1 - s) / 0.22, 0, 1)
    on_skin = polar < HANG + 0.1
    edge = np.where(on_skin, from_tip**0.6, 1.0)
    in_front = side < 1.0
    least = 0.10 + 0.5 * fringe(person) * in_front
    return np.maximum(edge, least)


def _part(side: np.ndarray, polar: np.ndarray) -> np.ndarray:
    """Depth of the parting, a furrow from the forehead over the top of the head, 0 to 1."""
    on_skull = np.minimum(polar, HANG)
    # Meridians meet at the crown: only with the sine the furrow is equally wide everywhere.
    arc = (side - 0.12) * np.sin(on_skull)
    furrow = _bell(arc, 0.0, 0.06)
    in_front = side < 1.4
    on_top = _bell(on_skull, 0.5, 0.5)
    return furrow * in_front * on_top


def _waves(person: Person, turn: np.ndarray, polar: np.ndarray) -> np.ndarray:
    """Broad locks that everybody's hair has, -1 to 1."""
    phase = person.phase
    steep = np.sin(turn * 7 + 5 * polar + phase[2])
    flat = np.sin(3 * turn + 7 * polar + phase[3])
    return steep * flat


def _bumps(person: Person, turn: np.ndarray, polar: np.ndarray) -> np.ndarray:
    """Small curls, which wavy hair alone has, -1 to 1."""
    phase = person.phase
    around = np.sin(13 * turn + phase[4])
    along = np.sin(17 * polar + phase[5])
    return person.trait["wave"] * around * along


def _quiff(person: Person, s: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Hair that stands up above the forehead, 0 to 1: the less it falls into it, the more."""
    trait = person.trait
    in_front = _bell(side, 0.1, 0.8)
    at_hairline = _bell(s, 0.75, 0.22)
    lifted = 1 - trait["fringe"]
    upright = lifted * trait["volume"]
    return upright * in_front * at_hairline
