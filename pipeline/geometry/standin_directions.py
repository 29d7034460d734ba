"""How the stand-in head varies: 300 shape directions and 100 expression directions (world units).

Every direction is a smooth displacement field in space, sampled at the vertices. The first ones have names;
the rest are random fields that shrink with their number, so that coefficients from N(0, 1) look like people.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np

from pipeline.core.seeds import rng
from pipeline.geometry.mesh import Mesh
from pipeline.geometry.standin_openings import SIDES, eye_centre

SHAPES, EXPRESSIONS = 300, 100
Field = Callable[[np.ndarray], np.ndarray]  # points (N, 3) -> displacement (N, 3)


@dataclass(frozen=True)
class Bump:
    """A Gaussian bump in space; for x < 0 there is its mirror image."""

    centre: np.ndarray  # (3,)
    widths: np.ndarray  # (3,) standard deviations
    shift: np.ndarray  # (3,) displacement at the centre


def _read(table: str) -> dict[str, list[Bump]]:
    """Bumps by the name of their direction.

    A line has the name, the centre, the widths and the shift, each x y z.
    """
    bumps: dict[str, list[Bump]] = {}
    for line in table.strip().splitlines():
        name, *columns = line.split("|")
        numbers = [np.array(column.split(), np.float64) for column in columns]
        named = bumps.setdefault(name.strip(), [])
        if numbers:
            named.append(Bump(*numbers))
    return bumps


# Named shape directions. Sideways displacement changes sign with x, so that a face grows wider on both sides.
SHAPE_BUMPS = _read("""
nose length    |      0  -0.01   0.35 |   0.06  0.055   0.09 |      0 -0.014  0.004
nose height    |      0   0.01   0.37 |  0.045   0.06   0.08 |      0      0   0.02
nose width     |  0.045  -0.01   0.32 |  0.035  0.045   0.06 |  0.011      0      0
nose bridge    |      0   0.07   0.32 |   0.04  0.045   0.08 |      0      0  0.014
nose tip up    |      0    0.0   0.37 |   0.04  0.035   0.06 |      0  0.014  0.002
jaw width      |   0.19  -0.12   0.16 |   0.12    0.1   0.16 |  0.028      0      0
jaw height     |      0  -0.22    0.3 |   0.25    0.1   0.22 |      0 -0.026      0
chin forward   |      0   -0.2   0.34 |   0.09   0.07   0.12 |      0      0  0.024
chin width     |   0.07   -0.2   0.31 |   0.06   0.06    0.1 |  0.018  0.004      0
brow ridge     |   0.09   0.14   0.28 |   0.12  0.045    0.1 |      0      0  0.013
brow height    |   0.09  0.155   0.27 |   0.12  0.045   0.12 |      0  0.012      0
cheek bones    |  0.165   0.03    0.2 |   0.07   0.06    0.1 |  0.016      0  0.014
cheek flesh    |  0.135  -0.07   0.23 |   0.08   0.08    0.1 |  0.022      0  0.016
forehead       |      0   0.26   0.25 |   0.22    0.1   0.15 |      0  0.006   0.02
forehead width |    0.2    0.2    0.1 |   0.12   0.14   0.22 |   0.02      0      0
mouth width    |  0.075 -0.092    0.3 |  0.045   0.04   0.07 |  0.011      0 -0.003
upper lip      |      0 -0.076  0.335 |   0.08  0.016   0.06 |      0  0.006  0.006
lower lip      |      0  -0.11  0.335 |   0.08  0.018   0.06 |      0 -0.006  0.006
mouth height   |      0  -0.09   0.33 |   0.11   0.05   0.12 |      0   0.01      0
mouth forward  |      0  -0.09   0.33 |   0.09   0.05   0.09 |      0      0  0.012
eye spacing    |   0.09  0.085   0.24 |  0.075   0.06   0.12 |   0.01      0      0
eye height     |   0.09  0.085   0.24 |    0.1   0.06   0.12 |      0   0.01      0
eye depth      |   0.09  0.085   0.24 |   0.09   0.05    0.1 |      0      0   0.01
neck width     |   0.14  -0.33  -0.05 |   0.14   0.13    0.3 |  0.024      0      0
ear size       |   0.27   0.04    0.0 |   0.05   0.07   0.07 |  0.014  0.006 -0.012
shoulders      |   0.45  -0.48  -0.05 |   0.25    0.1    0.3 |   0.03  0.035      0
""")
SHAPE_SCALES = {
    "width": (0.042, 0, 0),
    "height": (0, 0.038, 0),
    "depth": (0, 0, 0.04),
    "size": (0.025, 0.025, 0.025),
}
ONE_SIDE = "one side"
SHAPE_NAMES = [*SHAPE_SCALES, *SHAPE_BUMPS, ONE_SIDE]

# Named expression directions. A bump acts on both sides unless its name ends in left or right. The four
# directions of the lids have none, as lids move along their rings.
EXPRESSION_BUMPS = _read("""
smile            |   0.08  -0.09    0.3 |  0.058  0.034   0.08 |  0.017  0.018 -0.014
smile            |      0 -0.108   0.33 |   0.05  0.018   0.06 |      0 -0.005 -0.003
smile            |   0.12  -0.04   0.26 |   0.05   0.04   0.08 |  0.004   0.01  0.008
brow raise       |    0.1   0.15   0.27 |    0.1  0.042   0.12 |      0  0.022      0
lid close left
lid close right
frown            |  0.078   -0.1    0.3 |  0.036  0.034   0.07 | -0.002 -0.016 -0.002
pucker           |   0.07 -0.092   0.31 |   0.04  0.035   0.07 | -0.024      0  0.014
pucker           |      0  -0.09   0.34 |   0.04  0.035   0.06 |      0      0  0.014
brow furrow      |   0.05  0.145   0.29 |  0.045  0.035    0.1 | -0.009 -0.013  0.002
inner brow raise |  0.045   0.15   0.29 |  0.045   0.04    0.1 |      0  0.018      0
upper lip raise  |      0 -0.078   0.33 |   0.06  0.022   0.07 |      0  0.014  0.002
lower lip down   |      0 -0.108   0.33 |   0.06  0.024   0.07 |      0 -0.014  0.002
mouth stretch    |  0.078 -0.092    0.3 |  0.036  0.034   0.07 |  0.018 -0.002  -0.01
lid wide
squint
cheek raise      |   0.12   0.01   0.26 |   0.06   0.04   0.08 |      0   0.01  0.008
nose wrinkle     |   0.03   0.03   0.31 |  0.035   0.05   0.09 |      0  0.009  0.002
mouth right      |      0 -0.095   0.33 |  0.085   0.05    0.1 |  0.016      0      0
cheek puff       |  0.125 -0.075   0.25 |   0.05   0.05   0.08 |  0.014      0  0.016
chin raise       |      0  -0.17   0.33 |   0.07   0.05    0.1 |      0   0.01  0.008
lips inwards     |      0 -0.092  0.335 |  0.075  0.026   0.05 |      0      0 -0.012
smile left       |  0.078  -0.09    0.3 |  0.034   0.03   0.07 |   0.01  0.017 -0.008
smile right      |  0.078  -0.09    0.3 |  0.034   0.03   0.07 |   0.01  0.017 -0.008
brow raise left  |    0.1   0.15   0.27 |   0.08  0.042   0.12 |      0  0.016      0
brow raise right |    0.1   0.15   0.27 |   0.08  0.042   0.12 |      0  0.016      0
""")
EXPRESSION_NAMES = list(EXPRESSION_BUMPS)
TO_ONE_SIDE = "mouth right"  # the whole mouth goes there, so that its displacement does not change sign
# Of lids: how far the upper one closes, how far the lower one comes up, in openings of the eye.
LID_MOTIONS = {
    "lid close left": (1.0, 0.0),
    "lid close right": (1.0, 0.0),
    "lid wide": (-0.35, -0.08),
    "squint": (0.16, 0.24),
}


def bump(
    points_N3: np.ndarray,
    centre: tuple,
    widths: tuple,
    side: str = "both",
) -> np.ndarray:
    """Weight (N,) of a Gaussian bump around `centre`, 1 there.

    For "both" there is one around the mirror image of the centre, too.
    """
    centre = np.asarray(centre, np.float64)
    widths = np.asarray(widths, np.float64)

    def one(sign: float) -> np.ndarray:
        offset = (points_N3 - centre * [sign, 1, 1]) / widths
        return np.exp(-0.5 * (offset**2).sum(1))

    if centre[0] == 0 or side == "left":
        return one(1.0)
    if side == "right":
        return one(-1.0)
    return np.maximum(one(1.0), one(-1.0))


def shape_directions(mesh: Mesh, points_V3: np.ndarray) -> np.ndarray:
    """(V, 3, 300): displacement of every vertex for a coefficient of 1."""
    fields: list[Field] = [partial(_scaling, scale=scale) for scale in SHAPE_SCALES.values()]
    fields += [_bump_field(bumps, strength=0.75, seam=0.07) for bumps in SHAPE_BUMPS.values()]
    fields.append(_one_side)
    for number in range(len(fields), SHAPES):
        decay = (number / 30.0) ** -0.9
        fields.append(
            _random_field(
                rng(0, "standin shape", number),
                low=np.array([0, -0.35, -0.25]),
                high=np.array([0.24, 0.38, 0.34]),
                size=0.0028 * decay,
                width=0.06 + 0.05 * decay,
            )
        )
    columns = [_kept_eyes(mesh, points_V3, field, lids=True) for field in fields]
    directions = np.stack(columns, axis=-1)
    # Every shape has its lips closed: both edges move like their mean, and the bag with them.
    lips = mesh.rings["lip0"]
    opposite = np.roll(lips[::-1], 1)
    directions[lips] = 0.5 * (directions[lips] + directions[opposite])
    bag = mesh.part["bag"]
    directions[bag[:-1]] = np.tile(directions[lips], (3, 1, 1))
    directions[bag[-1]] = directions[lips].mean(0)
    return directions


def expression_directions(mesh: Mesh, points_V3: np.ndarray) -> np.ndarray:
    """(V, 3, 100): displacement of every vertex for a coefficient of 1.

    Coefficient 1 of a lid direction shuts that eye.
    """
    columns = []
    for name, bumps in EXPRESSION_BUMPS.items():
        side = _side(name)
        if name in LID_MOTIONS:
            sides = SIDES if side == "both" else (side,)
            moved = [_lid_motion(mesh, points_V3, one, *LID_MOTIONS[name]) for one in sides]
            columns.append(reduce(np.add, moved))
        else:
            field = partial(_to_one_side, bumps) if name == TO_ONE_SIDE else _bump_field(bumps, side)
            columns.append(_kept_eyes(mesh, points_V3, field, lids=False))
    for number in range(len(columns), EXPRESSIONS):
        # Two thirds of the random directions are about the mouth, the others about the brows.
        if number % 3:
            low = np.array([0, -0.17, 0.255])
            high = np.array([0.11, -0.02, 0.355])
        else:
            low = np.array([0, 0.10, 0.22])
            high = np.array([0.14, 0.20, 0.30])
        generator = rng(0, "standin expression", number)
        size = 0.0022 * (number / 20.0) ** -0.8
        field = _random_field(generator, low, high, size, width=0.035)
        columns.append(_kept_eyes(mesh, points_V3, field, lids=False))
    return np.stack(columns, axis=-1)


def _side(name: str) -> str:
    last = name.split()[-1]
    return last if last in SIDES and name != TO_ONE_SIDE else "both"


def _scaling(points: np.ndarray, scale: tuple) -> np.ndarray:
    """Stretches the head, fading out towards the shoulders."""
    fade = np.exp(np.minimum(points[:, 1:2] + 0.3, 0) / 0.15)
    return fade * (points - [0.0, 0.0, 0.05]) * scale


def _bump_field(
    bumps: list[Bump],
    side: str = "both",
    strength: float = 1.0,
    seam: float = 0.02,
) -> Field:
    """Sum of bumps.

    Sideways displacement passes smoothly through zero within `seam` of the middle, so that nothing folds
    there.
    """

    def at(points: np.ndarray) -> np.ndarray:
        moved = np.zeros_like(points)
        sideways = np.tanh(points[:, 0] / seam)
        ones = np.ones(len(points))
        sign = np.column_stack([sideways, ones, ones])
        for one in bumps:
            weight = bump(points, one.centre, one.widths, side)
            moved += strength * weight[:, None] * one.shift * sign
        return moved

    return at


def _to_one_side(bumps: list[Bump], points: np.ndarray) -> np.ndarray:
    """Sum of bumps that move both halves of the face the same way."""
    moved = np.zeros_like(points)
    for one in bumps:
        moved += bump(points, one.centre, one.widths)[:, None] * one.shift
    return moved


def _one_side(points: np.ndarray) -> np.ndarray:
    """The small asymmetry of a face: one half higher than the other."""
    weight = bump(points, (0.12, -0.02, 0.25), (0.14, 0.18, 0.2))
    sign = np.tanh(points[:, :1] / 0.1)
    return weight[:, None] * sign * np.array([0.002, 0.007, 0.002])


def _random_field(
    generator: np.random.Generator,
    low: np.ndarray,
    high: np.ndarray,
    size: float,
    width: float,
) -> Field:
    """Four bumps with centres between `low` and `high`.

    Four fields of five are the same on both sides.
    """
    centres = generator.uniform(low, high, (4, 3))
    shifts = generator.normal(0, size, (4, 3))
    mirrored = generator.uniform() < 0.8
    signs = (1, -1) if mirrored else (1,)

    def at(points: np.ndarray) -> np.ndarray:
        moved = np.zeros_like(points)
        for centre, shift in zip(centres, shifts, strict=True):
            for sign in signs:
                squares = (points - centre * [sign, 1, 1]) ** 2
                near = np.exp(-0.5 * squares.sum(1) / width**2)
                moved += near[:, None] * shift * [sign, 1, 1]
        return moved

    return at


def _kept_eyes(
    mesh: Mesh,
    points: np.ndarray,
    field: Field,
    lids: bool,
) -> np.ndarray:
    """The field on all vertices; eyeballs move as one piece, and so do the lids next to them when `lids`."""
    moved = field(points)
    # The left eye first, as lids between the eyes feel both.
    for side in ("left", "right"):
        centre = eye_centre(side)
        whole = field(centre[None])
        if lids:
            distance = np.linalg.norm(points - centre - [0, 0, 0.03], axis=1)
            near = np.exp(-((distance / 0.062) ** 4))[:, None]
            moved = (1 - near) * moved + near * whole
        moved[mesh.part[f"eye_{side}"]] = whole if lids else 0.0
    return moved


def _lid_motion(
    mesh: Mesh,
    points: np.ndarray,
    side: str,
    close: float,
    squint: float,
) -> np.ndarray:
    """Upper lid down (close = 1 shuts the eye), lower lid up by `squint` of the opening.

    The skin around follows, less and less.
    """
    moved = np.zeros_like(points)
    margin = mesh.rings[f"lid0_{side}"]
    # The rings run counter-clockwise from the outer corner: 1 to 7 are the upper lid, 15 to 9 below them the
    # lower one.
    upper = margin[1:8]
    lower = margin[:8:-1]
    opening = points[upper] - points[lower]
    for level, share in enumerate((1.0, 0.80, 0.30, 0.04)):
        ring = mesh.rings[f"lid{level}_{side}"]
        moved[ring[1:8]] -= close * share * opening
        moved[ring[:8:-1]] += squint * share**2 * opening
    # A lid that closes on a straight line would cut into the eyeball: its middle bulges out.
    out = points[margin] - eye_centre(side)
    middle = (1 - (out[:, 0] / 0.045) ** 2).clip(0)
    bulge = middle[:, None] * out / np.linalg.norm(out, axis=1, keepdims=True)
    moved[margin] += 0.0012 * (abs(close) + squint) * bulge
    return moved
