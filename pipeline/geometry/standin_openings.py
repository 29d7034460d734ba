"""Lids and lips of the stand-in head.

They are rings of vertices around the openings of eyes and mouth, and what lines those. Both sides of an
opening have the same number of vertices, so that lids and lips meet vertex on vertex when they close.
"""

import numpy as np

from pipeline.geometry.curves import circle
from pipeline.geometry.mesh import Mesh, fan, grid_faces
from pipeline.geometry.standin_skull import Surface

SIDES = {"right": -1, "left": 1}  # of the person; the sign of x there
EYE_CENTRE = np.array([0.0910, 0.0875, 0.2165])  # of the eye at x > 0
EYE_RADIUS = 0.0425
MOUTH_CENTRE = np.array([0.0, -0.0915, 0.335])
RING = 16  # vertices around an eye opening
LIPS = 20  # vertices around the mouth opening

# Of each ring of lids, from the margin outwards: size in openings, height above the eyeball.
LID_RINGS = (
    (1.0, 0.0035),
    (1.28, 0.0075),
    (1.62, 0.009),
    (2.1, 0.01),
)
# Of each ring of lips, from the line between them outwards: half width, height of the upper and of the lower
# half, how far it stands out, depth of the cupid's bow.
LIP_RINGS = (
    (0.0735, 0.0005, 0.0005, -0.002, 0.0),
    (0.0755, 0.012, 0.014, 0.009, 0.001),
    (0.0805, 0.0235, 0.030, 0.002, 0.004),
    (0.098, 0.036, 0.045, 0.0, 0.0),
    (0.125, 0.050, 0.062, 0.0, 0.0),
)
# Of each ring of the mouth's bag, inwards from the lips: width in lips, how far it opens up and down, depth.
BAG_RINGS = (
    (0.96, 0.010, 0.018),
    (0.9, 0.028, 0.06),
    (0.85, 0.036, 0.12),
)


def eye_centre(side: str) -> np.ndarray:
    """The centre (3,) of the left or the right eye."""
    return EYE_CENTRE * [SIDES[side], 1, 1]


def eye_ring(scale: float) -> np.ndarray:
    """Offsets (16, 2) from the centre of the eye at x > 0, counter-clockwise from the outer corner.

    A scale of 1 is the lid margin.
    """
    angle = circle(RING)
    x = np.cos(angle)
    y = np.sin(angle)
    above = np.clip(y, 0, 1)
    below = np.clip(-y, 0, 1)
    upper = 0.0135 * above**0.8
    lower = -0.0100 * below**0.9
    # A shear lifts the outer corner; other than a turn it keeps the ring convex.
    tilt = 0.0035 * x
    grow = scale - 1.0
    growth = np.where(y > 0, 0.032, 0.030)
    around = grow * growth * y
    half_width = 0.0412 + 0.036 * grow
    across = half_width * x
    up = upper + lower + tilt + around
    return np.column_stack([across, up])


def lid_ring(surface: Surface, scale: float, lift: float) -> np.ndarray:
    """Ring of lid vertices (16, 3) at x > 0.

    It lies on a sphere just above the eyeball near the margin, and on the skull further out.
    """
    middle = EYE_CENTRE[:2]
    depth = EYE_CENTRE[2]
    offset = eye_ring(scale)
    ring = middle + offset
    outside = surface.at(ring)
    # The offsets again from the places, as the last bits of the head model come from there.
    offset = ring - middle
    sphere = EYE_RADIUS + lift
    squares = sphere**2 - (offset**2).sum(1)
    # Far from its pole the ball falls away steeply; lids stay at this height there.
    least = (0.55 * sphere) ** 2
    height = np.sqrt(np.maximum(squares, least))
    on_ball = np.column_stack([ring, depth + height])
    share = np.clip((scale - 1.0) / 0.8, 0, 1)
    blend = share**0.7
    near = (1 - blend) * on_ball
    return near + blend * outside


def lid_chart(lids_N3: np.ndarray, level: int) -> np.ndarray:
    """Where triangulation sees a ring of lids.

    The rings are evenly spread there, so that each is joined to the next one only.
    """
    flat = lids_N3.copy()
    to_plane = 0.262 - flat[:, 2]
    flat[:, 2] += (1 - level / 3) * to_plane
    return flat


def lip_ring(
    surface: Surface,
    width: float,
    up: float,
    down: float,
    lift: float,
    bow: float = 0.0,
) -> np.ndarray:
    """Ring around the mouth (20, 3), counter-clockwise from the corner at x > 0.

    The numbers are those of LIP_RINGS.
    """
    angle = circle(LIPS)
    cosine = np.cos(angle)
    sine = np.sin(angle)
    x = np.sign(cosine) * np.abs(cosine) ** 0.9
    profile = np.abs(sine) ** 0.9
    # The bow is a narrow dip in the middle of the upper lip.
    narrow = np.exp(-((x / 0.12) ** 2))
    dip = bow * narrow * (sine > 0.5)
    upper = up * profile - dip
    lower = -down * profile
    y = np.where(sine >= 0, upper, lower)
    sag = 0.002 * (x**2)
    height = MOUTH_CENTRE[1] + y - sag
    flat = np.column_stack([width * x, height])
    points = surface.at(flat)
    # Lips stand out in the middle, and the corners of the inner rings lie deeper than the skin around them.
    roundness = np.clip(1 - x**2, 0, 1)
    pout = lift * np.sqrt(roundness)
    is_inner = width < 0.09
    points[:, 2] += pout - 0.012 * x**4 * is_inner
    return points


def add_lid_lining(
    mesh: Mesh,
    skull_V3: np.ndarray,
    side: str,
) -> None:
    """Join a strip behind the lid margin.

    It closes the corners of the eye, where the eyeball does not reach.
    """
    margin = mesh.rings[f"lid0_{side}"]
    centre = eye_centre(side)
    offset = skull_V3[margin] - centre
    inwards = centre + offset * [0.8, 0.8, 0.0] - [0, 0, 0.005]
    lining = mesh.add(f"lining_{side}", inwards)
    # Two triangles between each vertex of the margin and the next.
    next_margin = np.roll(margin, -1)
    next_lining = np.roll(lining, -1)
    outer = np.column_stack([margin, next_margin, lining])
    inner = np.column_stack([next_margin, next_lining, lining])
    strip = np.concatenate([outer, inner])
    mesh.faces.append(strip[:, :: SIDES[side]])


def add_mouth_bag(mesh: Mesh, skull_V3: np.ndarray) -> None:
    """Join the inside of the mouth: three rings that widen inwards, and one vertex at the back."""
    seam = mesh.rings["lip0"]
    lip = skull_V3[seam]
    # Both corners belong to no lip, so that they do not part.
    y = lip[:, 1]
    height = np.round(y - np.median(y), 5)
    upwards = np.array([0, 1.0, 0])
    side = np.sign(height)[:, None] * upwards
    rows = []
    for narrow, rise, back in BAG_RINGS:
        spread = side * rise
        rows.append(lip * [narrow, 1, 1] + spread - [0, 0, back])
    throat = [[0, MOUTH_CENTRE[1], 0.17]]
    points = np.concatenate([*rows, throat])
    rings = len(BAG_RINGS)
    last = (rings - 1) * LIPS + np.arange(LIPS)
    cap = fan(rings * LIPS, np.roll(last, -1), last)
    walls = grid_faces(rings, LIPS)
    # The bag is seen from within: its triangles turn the other way.
    faces = np.concatenate([walls, cap])[:, ::-1]
    bag = mesh.add("bag", points, faces)
    first = bag[:LIPS]
    next_seam = np.roll(seam, -1)
    next_first = np.roll(first, -1)
    outer = np.column_stack([next_seam, first, seam])
    inner = np.column_stack([next_first, first, next_seam])
    strip = np.concatenate([outer, inner])
    mesh.faces.append(strip)
