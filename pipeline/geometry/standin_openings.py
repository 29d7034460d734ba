"""Lids and lips of the stand-in head.

They are rings of vertices around the openings of eyes and mouth, and what lines those. Both sides of an
opening have the same number of vertices, so that lids and lips meet vertex on vertex when they close.
"""

import numpy as np

from pipeline.geometry.mesh import Mesh, fan, grid_faces
from pipeline.geometry.standin_skull import Surface

EYE_CENTRE = np.array([0.0910, 0.0875, 0.2165])  # of the eye at x > 0
EYE_RADIUS = 0.0425
MOUTH_CENTRE = np.array([0.0, -0.0915, 0.335])
RING = 16  # vertices around an eye opening
LIPS = 20  # vertices around the mouth opening

# Of each ring of lids, from the margin outwards: size in openings, height above the eyeball.
LID_RINGS = ((1.0, 0.0035), (1.28, 0.0075), (1.62, 0.009), (2.1, 0.01))
# Of each ring of lips, from the line between them outwards: half width, height of the upper and of the lower
# half, how far it stands out, depth of the cupid's bow.
LIP_RINGS = (
    (0.0735, 0.0005, 0.0005, -0.002, 0.0),
    (0.0755, 0.012, 0.014, 0.009, 0.001),
    (0.0805, 0.0235, 0.030, 0.002, 0.004),
    (0.098, 0.036, 0.045, 0.0, 0.0),
    (0.125, 0.050, 0.062, 0.0, 0.0),
)


def eye_ring(scale: float) -> np.ndarray:
    """Offsets (16, 2) from the centre of the eye at x > 0, counter-clockwise from the outer corner.

    A scale of 1 is the lid margin.
    """
    angle = 2 * np.pi * np.arange(RING) / RING
    x = np.cos(angle)
    y = np.sin(angle)
    upper = 0.0135 * np.clip(y, 0, 1) ** 0.8
    lower = -0.0100 * np.clip(-y, 0, 1) ** 0.9
    # A shear lifts the outer corner; other than a turn it keeps the ring convex.
    tilt = 0.0035 * x
    grow = scale - 1.0
    around = grow * np.where(y > 0, 0.032, 0.030) * y
    across = (0.0412 + 0.036 * grow) * x
    return np.column_stack([across, upper + lower + tilt + around])


def lid_ring(surface: Surface, scale: float, lift: float) -> np.ndarray:
    """Ring of lid vertices (16, 3) at x > 0.

    It lies on a sphere just above the eyeball near the margin, and on the skull further out.
    """
    offset = eye_ring(scale)
    ring = EYE_CENTRE[:2] + offset
    outside = surface.at(ring)
    # The offsets again from the places, as the last bits of the head model come from there.
    offset = ring - EYE_CENTRE[:2]
    sphere = EYE_RADIUS + lift
    squares = sphere**2 - (offset**2).sum(1)
    inside = np.sqrt(np.maximum(squares, (0.55 * sphere) ** 2))
    on_ball = np.column_stack([ring, EYE_CENTRE[2] + inside])
    blend = np.clip((scale - 1.0) / 0.8, 0, 1) ** 0.7
    return (1 - blend) * on_ball + blend * outside


def lid_chart(lids_N3: np.ndarray, level: int) -> np.ndarray:
    """Where triangulation sees a ring of lids.

    The rings are evenly spread there, so that each is joined to the next one only.
    """
    flat = lids_N3.copy()
    flat[:, 2] += (1 - level / 3) * (0.262 - flat[:, 2])
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
    angle = 2 * np.pi * np.arange(LIPS) / LIPS
    x = np.cos(angle)
    s = np.sin(angle)
    x = np.sign(x) * np.abs(x) ** 0.9
    profile = np.abs(s) ** 0.9
    dip = bow * np.exp(-((x / 0.12) ** 2)) * (s > 0.5)
    y = np.where(s >= 0, up * profile - dip, -down * profile)
    sag = 0.002 * (x**2)
    points = surface.at(np.column_stack([width * x, MOUTH_CENTRE[1] + y - sag]))
    # Lips stand out in the middle, and the corners of the inner rings lie deeper than the skin around them.
    pout = lift * np.sqrt(np.clip(1 - x**2, 0, 1))
    points[:, 2] += pout - 0.012 * x**4 * (width < 0.09)
    return points


def add_lid_lining(
    mesh: Mesh,
    skull_V3: np.ndarray,
    side: str,
    sign: int,
) -> None:
    """Join a strip behind the lid margin.

    It closes the corners of the eye, where the eyeball does not reach.
    """
    margin = mesh.rings[f"lid0_{side}"]
    centre = EYE_CENTRE * [sign, 1, 1]
    inwards = centre + (skull_V3[margin] - centre) * [0.8, 0.8, 0.0] - [0, 0, 0.005]
    lining = mesh.add(f"lining_{side}", inwards)
    following = np.roll(margin, -1)
    outer = np.column_stack([margin, following, lining])
    inner = np.column_stack([following, np.roll(lining, -1), lining])
    mesh.faces.append(np.concatenate([outer, inner])[:, ::sign])


def add_mouth_bag(mesh: Mesh, skull_V3: np.ndarray) -> None:
    """Join the inside of the mouth: three rings that widen inwards, and one vertex at the back."""
    seam = mesh.rings["lip0"]
    lip = skull_V3[seam]
    # Both corners belong to no lip, so that they do not part.
    height = np.round(lip[:, 1] - np.median(lip[:, 1]), 5)
    side = np.sign(height)[:, None] * np.array([0, 1.0, 0])
    rows = []
    for narrow, rise, back in ((0.96, 0.010, 0.018), (0.9, 0.028, 0.06), (0.85, 0.036, 0.12)):
        rows.append(lip * [narrow, 1, 1] + side * rise - [0, 0, back])
    throat = [[0, MOUTH_CENTRE[1], 0.17]]
    ring = 2 * LIPS + np.arange(LIPS)
    cap = fan(3 * LIPS, np.roll(ring, -1), ring)
    # The bag is seen from within: its triangles turn the other way.
    faces = np.concatenate([grid_faces(3, LIPS), cap])[:, ::-1]
    first = mesh.add("bag", np.concatenate([*rows, throat]), faces)[:LIPS]
    following = np.roll(seam, -1)
    outer = np.column_stack([following, first, seam])
    inner = np.column_stack([np.roll(first, -1), first, following])
    mesh.faces.append(np.concatenate([outer, inner]))
