"""The surface of the stand-in head: where its vertices are and how they are joined (world units: FLAME metres x 3, neck joint at 0).

The skull is star-shaped: a set of directions, dense around eyes, nose and mouth, triangulated by their convex hull on the sphere. Eyelids
and lips are rings of directions around holes; eyeballs, mouth bag, ears and bust are pieces of their own. Proportions were chosen so that
the landmarks fall where the official framing has them (facts 5.2).
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.interpolate import RBFInterpolator
from scipy.spatial import ConvexHull, cKDTree

EYE_CENTRE = np.array([0.0910, 0.0875, 0.2165])  # of the eye at x > 0
EYE_RADIUS = 0.0425
MOUTH_CENTRE = np.array([0.0, -0.0915, 0.335])
RING = 16  # vertices around an eye opening
LIPS = 20  # vertices around the mouth opening

# Landmarks 0-8, 17-21 and 27-33 of the 68 (iBUG order) as x, y, z; the other side is their mirror image.
CONTOUR = [
    (-0.2175, 0.0564, 0.0867), (-0.2155, 0.0145, 0.105), (-0.2115, -0.027, 0.124), (-0.202, -0.069, 0.148), (-0.190, -0.113, 0.173),
    (-0.1495, -0.1685, 0.2375), (-0.1208, -0.1853, 0.2669), (-0.0670, -0.2105, 0.3130), (0.0, -0.224, 0.332),
]  # fmt: skip
BROW = [
    (-0.1656, 0.1256, 0.225),
    (-0.1485, 0.1450, 0.238),
    (-0.1195, 0.1535, 0.260),
    (-0.084, 0.1550, 0.281),
    (-0.043, 0.150, 0.299),
]
NOSE = [
    (0.0, 0.103, 0.300), (0.0, 0.065, 0.325), (0.0, 0.029, 0.356), (0.0, 0.009, 0.373),
    (-0.045, -0.023, 0.316), (-0.023, -0.029, 0.331), (0.0, -0.034, 0.340),
]  # fmt: skip
# More points that the surface passes through (x >= 0, mirrored): flesh between the landmarks.
FLESH = [
    (0.2005, -0.0865, 0.150), (0.0575, -0.217, 0.318), (0.0395, 0.142, 0.299), (0.1365, 0.144, 0.2465), (0.164, 0.113, 0.226),
    (0.0, 0.145, 0.305), (0.0, 0.20, 0.302), (0.0, 0.27, 0.265), (0.10, 0.22, 0.262), (0.17, 0.19, 0.19), (0.222, 0.13, 0.09),
    (0.022, 0.068, 0.305), (0.024, 0.034, 0.325), (0.024, 0.008, 0.349), (0.044, 0.000, 0.325), (0.052, -0.012, 0.310),
    (0.062, 0.004, 0.285), (0.040, 0.040, 0.283), (0.033, 0.075, 0.282), (0.030, -0.014, 0.345), (0.078, -0.03, 0.279),
    (0.10, 0.035, 0.268), (0.135, 0.02, 0.247),
    (0.17, 0.055, 0.205), (0.185, 0.0, 0.18), (0.13, -0.06, 0.255), (0.165, -0.09, 0.205), (0.105, -0.12, 0.275), (0.0, -0.148, 0.322),
    (0.05, -0.155, 0.315), (0.0, -0.188, 0.342), (0.05, -0.19, 0.327), (0.0, -0.048, 0.333), (0.018, -0.05, 0.333), (0.185, 0.10, 0.185),
    (0.0, -0.238, 0.27), (0.10, -0.212, 0.22), (0.16, -0.165, 0.15), (0.19, -0.11, 0.08), (0.0, -0.215, 0.12),
    (0.2185, 0.098, 0.068), (0.168, -0.150, 0.208), (0.092, -0.202, 0.296), (0.036, -0.221, 0.327), (0.180, 0.134, 0.206),
]  # fmt: skip


@dataclass
class Mesh:
    """Growing mesh. `part` names the vertices of each piece; `rings` holds the ordered vertex rings around eyes and mouth."""

    points: list[np.ndarray] = field(default_factory=list)
    faces: list[np.ndarray] = field(default_factory=list)
    part: dict[str, np.ndarray] = field(default_factory=dict)
    rings: dict[str, np.ndarray] = field(default_factory=dict)
    count: int = 0

    def add(self, name: str, points_N3: np.ndarray, faces_F3: np.ndarray | None = None) -> np.ndarray:
        index = np.arange(self.count, self.count + len(points_N3))
        self.points.append(np.asarray(points_N3, np.float64))
        if faces_F3 is not None and len(faces_F3):
            self.faces.append(np.asarray(faces_F3) + self.count)
        self.part[name] = index
        self.count += len(points_N3)
        return index


def mirror(points_N3: np.ndarray) -> np.ndarray:
    return np.asarray(points_N3) * np.array([-1.0, 1.0, 1.0])


def _unit(points_N3: np.ndarray) -> np.ndarray:
    return points_N3 / np.linalg.norm(points_N3, axis=-1, keepdims=True)


def _ellipsoid_radius(directions_N3: np.ndarray, centre: tuple, radii: tuple) -> np.ndarray:
    """Distance from 0 to the slightly boxy ellipsoid around `centre` (0 lies inside)."""
    scaled, offset = directions_N3 / radii, -np.divide(centre, radii)
    a, b, c = (scaled**2).sum(1), scaled @ offset, offset @ offset - 1.0
    radius = (-b + np.sqrt(b * b - a * c)) / a
    x, y, z = ((scaled * radius[:, None] + offset) ** 2).T
    return radius * (1 + 0.20 * (x * y + y * z + z * x))


def _skull(directions_N3: np.ndarray) -> np.ndarray:
    cranium = _ellipsoid_radius(directions_N3, (0.0, 0.125, -0.025), (0.224, 0.262, 0.28))
    face = _ellipsoid_radius(directions_N3, (0.0, -0.04, 0.13), (0.188, 0.192, 0.19))
    return (cranium**16 + face**16) ** (1 / 16)


def _anchors() -> np.ndarray:
    half = np.array(CONTOUR + BROW + NOSE + FLESH, np.float64)
    both = np.concatenate([half, mirror(half)])
    return both[np.unique(np.round(both, 6), axis=0, return_index=True)[1]]


class Surface:
    """Radius of the star-shaped skull for any direction: two ellipsoids, pulled onto the anchor points by a thin-plate spline."""

    def __init__(self) -> None:
        anchors = _anchors()
        radius = np.linalg.norm(anchors, axis=1)
        sides = [[x, y, z] for x in (-1, -0.5, 0, 0.5, 1) for y in (-0.6, 0, 0.6, 1.2) for z in (-1.0, -0.3)]
        back = np.array([*sides, [0, 1, 0], [0, 1, 0.4]])
        directions = np.concatenate([anchors / radius[:, None], _unit(back)])
        residual = np.concatenate([radius - _skull(anchors / radius[:, None]), np.zeros(len(back))])
        self.spline = RBFInterpolator(directions, residual, kernel="thin_plate_spline", smoothing=1e-4)

    def __call__(self, directions_N3: np.ndarray) -> np.ndarray:
        """Points on the surface for unit directions."""
        return directions_N3 * (_skull(directions_N3) + self.spline(directions_N3))[:, None]

    def at(self, xy_N2: np.ndarray) -> np.ndarray:
        """Points on the front of the surface for given x and y: a few fixed-point steps along z."""
        points = np.column_stack([xy_N2, np.full(len(xy_N2), 0.3)])
        for _ in range(8):
            hit = self(_unit(points))
            points[:, 2] *= np.linalg.norm(hit, axis=1) / np.linalg.norm(points, axis=1)
        return points


def eye_ring(scale: float) -> np.ndarray:
    """Offsets (16, 2) from the centre of the eye at x > 0, counter-clockwise from the outer corner; scale 1 = the lid margin."""
    angle = 2 * np.pi * np.arange(RING) / RING
    x, y = np.cos(angle), np.sin(angle)
    upper = 0.0135 * np.clip(y, 0, 1) ** 0.8
    lower = -0.0100 * np.clip(-y, 0, 1) ** 0.9
    grow = scale - 1.0
    tilt = 0.0035 * x  # a shear keeps the ring convex
    around = grow * np.where(y > 0, 0.032, 0.030) * y
    return np.column_stack([(0.0412 + 0.036 * grow) * x, upper + lower + tilt + around])


def _lids(surface: Surface, scale: float, lift: float) -> np.ndarray:
    """Ring of lid vertices: on a sphere just above the eyeball near the margin, on the skull further out."""
    ring = EYE_CENTRE[:2] + eye_ring(scale)
    outside = surface.at(ring)
    offset = ring - EYE_CENTRE[:2]
    sphere = EYE_RADIUS + lift
    inside = np.sqrt(np.maximum(sphere**2 - (offset**2).sum(1), (0.55 * sphere) ** 2))
    on_ball = np.column_stack([ring, EYE_CENTRE[2] + inside])
    blend = np.clip((scale - 1.0) / 0.8, 0, 1) ** 0.7
    return (1 - blend) * on_ball + blend * outside


def _lip_ring(
    surface: Surface, width: float, up: float, down: float, lift: float, bow: float = 0.0
) -> np.ndarray:
    """Ring of 20 around the mouth, counter-clockwise from the corner at x > 0; `up`, `down`: heights from the line between the lips."""
    angle = 2 * np.pi * np.arange(LIPS) / LIPS
    x, s = np.cos(angle), np.sin(angle)
    x = np.sign(x) * np.abs(x) ** 0.9
    profile = np.abs(s) ** 0.9
    y = np.where(s >= 0, up * profile - bow * np.exp(-((x / 0.12) ** 2)) * (s > 0.5), -down * profile)
    points = surface.at(np.column_stack([width * x, MOUTH_CENTRE[1] + y - 0.002 * (x**2)]))
    points[:, 2] += lift * np.sqrt(np.clip(1 - x**2, 0, 1)) - 0.012 * x**4 * (width < 0.09)
    return points


def _candidates() -> np.ndarray:
    """Directions at x >= 0, row by row, finer than any spacing."""
    rows = []
    for elevation in np.radians(np.arange(-88.5, 90, 1.5)):
        longitude = np.linspace(0, np.pi, int(np.ceil(np.pi * np.cos(elevation) / np.radians(1.5))) + 1)
        flat = np.column_stack(
            [np.sin(longitude), np.full_like(longitude, np.tan(elevation)), np.cos(longitude)]
        )
        rows.append(flat * np.cos(elevation))
    return np.concatenate(rows)


def _spacing(directions_N3: np.ndarray) -> np.ndarray:
    """Wanted distance between neighbours: small in the face, smaller on the nose."""
    face = np.exp(
        -((np.arccos(np.clip(directions_N3 @ _unit(np.array([0.0, -0.05, 1.0])), -1, 1)) / 0.85) ** 4)
    )
    nose = np.exp(
        -(((directions_N3[:, 0] / 0.20) ** 2 + ((directions_N3[:, 1] - 0.03) / 0.20) ** 2) ** 2)
    ) * (directions_N3[:, 2] > 0)
    return np.radians(9.0 - 4.9 * face - 1.5 * nose)


def _fill(fixed_N3: np.ndarray) -> np.ndarray:
    """Directions that fill the sphere around the fixed ones, mirror-symmetric: the finest places first, none nearer than its spacing."""
    candidates = _candidates()
    spacing = _spacing(candidates)
    middle = candidates[:, 0] < 0.5 * spacing
    candidates[middle] = _unit(candidates[middle] * [0.0, 1.0, 1.0])
    front = candidates * (EYE_CENTRE[2] + 0.04) / np.maximum(candidates[:, 2:], 0.2)
    lids = (
        np.hypot((front[:, 0] - EYE_CENTRE[0]) / 0.084, (front[:, 1] - EYE_CENTRE[1]) / 0.050) < 1
    )  # rings alone are here, to move as one
    free = (cKDTree(fixed_N3).query(candidates)[0] > 0.75 * spacing) & ~lids
    candidates, spacing = candidates[free], spacing[free]
    open_, kept = np.ones(len(candidates), bool), []
    for index in np.argsort(spacing, kind="stable"):
        if open_[index]:
            kept.append(candidates[index])
            open_ &= ((candidates - candidates[index]) ** 2).sum(1) > spacing**2
    half = np.array(kept)
    return np.concatenate([half, mirror(half[half[:, 0] > 0])])


def hull_faces(directions_N3: np.ndarray) -> np.ndarray:
    """Triangles of the sphere through these unit directions, counter-clockwise seen from outside."""
    faces = ConvexHull(directions_N3).simplices
    a, b, c = (directions_N3[faces[:, k]] for k in range(3))
    turned = np.einsum("ij,ij->i", np.cross(b - a, c - a), a + b + c) < 0
    faces[turned] = faces[turned][:, ::-1]
    return faces[np.lexsort(faces.T[::-1])]


def grid_faces(rows: int, columns: int, closed: bool = True) -> np.ndarray:
    """Triangles of a rows x columns grid of vertices (row-major), closed around the columns."""
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns if closed else columns - 1), indexing="ij")
    a, b = r * columns + c, r * columns + (c + 1) % columns
    d, e = a + columns, b + columns
    return np.concatenate([np.stack([a, d, b], -1).reshape(-1, 3), np.stack([b, d, e], -1).reshape(-1, 3)])


def _eyeball(centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A sphere whose pole looks forward: 11 rings of 16 and the two poles; a slight cornea bulge."""
    rings, columns = 11, 16
    polar, turn = np.pi * np.arange(1, rings + 1) / (rings + 1), 2 * np.pi * np.arange(columns) / columns
    p, t = np.meshgrid(polar, turn, indexing="ij")
    sphere = np.stack([np.sin(p) * np.cos(t), np.sin(p) * np.sin(t), np.cos(p)], -1).reshape(-1, 3)
    points = np.concatenate([sphere, [[0, 0, 1.0], [0, 0, -1.0]]]) * EYE_RADIUS + centre
    last, north, south = (rings - 1) * columns, rings * columns, rings * columns + 1
    ring = np.arange(columns)
    caps = [np.column_stack([np.full(columns, north), ring, (ring + 1) % columns])]
    caps.append(np.column_stack([np.full(columns, south), last + (ring + 1) % columns, last + ring]))
    return points, np.concatenate([grid_faces(rings, columns), *caps])


def _ear() -> tuple[np.ndarray, np.ndarray]:
    """The ear at x > 0: a tilted shell, thick at the rim, hollow in the middle; 6 rings of 14 and the hollow's centre."""
    columns, angle = 14, 2 * np.pi * np.arange(14) / 14
    outline = np.column_stack(
        [-0.040 * np.cos(angle) * (1 + 0.18 * np.sin(angle)), 0.075 * np.sin(angle)]
    )  # back, up
    rows = []
    for scale, lift in (
        (0.55, -0.020),
        (0.96, 0.0),
        (1.06, 0.014),
        (0.97, 0.024),
        (0.72, 0.013),
        (0.40, 0.004),
    ):
        rows.append(np.column_stack([outline * scale, np.full(columns, lift)]))
    flat = np.concatenate([*rows, [[0.0, 0.0, 0.002]]])
    back, up, out = flat[:, 0], flat[:, 1], flat[:, 2]
    x = 0.231 + 0.9 * out + 0.32 * np.clip(-back + 0.02, 0, None) + 0.10 * np.clip(up, 0, None)
    points = np.column_stack([x, 0.045 + up - 0.20 * back, 0.015 + back + 0.12 * up])
    ring = np.arange(columns)
    cap = np.column_stack(
        [np.full(columns, 6 * columns), 5 * columns + (ring + 1) % columns, 5 * columns + ring]
    )
    return points, np.concatenate([grid_faces(6, columns), cap])


# Neck and bust from inside the skull downwards: height, half width, half depth, centre z.
BUST = [
    (-0.06, 0.118, 0.130, -0.030), (-0.13, 0.126, 0.138, -0.035), (-0.20, 0.129, 0.140, -0.045), (-0.26, 0.130, 0.138, -0.055),
    (-0.315, 0.138, 0.138, -0.065), (-0.36, 0.160, 0.144, -0.072), (-0.395, 0.215, 0.152, -0.076), (-0.425, 0.305, 0.164, -0.078),
    (-0.455, 0.400, 0.178, -0.078), (-0.495, 0.475, 0.195, -0.075), (-0.55, 0.525, 0.210, -0.070), (-0.66, 0.555, 0.225, -0.065),
    (-0.85, 0.565, 0.23, -0.06), (-1.15, 0.57, 0.235, -0.06),
]  # fmt: skip
BUST_COLUMNS = 28


def _bust() -> tuple[np.ndarray, np.ndarray]:
    angle = 2 * np.pi * np.arange(BUST_COLUMNS) / BUST_COLUMNS
    rows = []
    for y, width, depth, z in BUST:
        x, f = np.sin(angle), np.cos(angle)
        drop = (
            0.10 * np.clip((width - 0.14) / 0.4, 0, 1) * f**2 * np.sign(np.clip(f, 0, 1))
        )  # the chest begins lower than the shoulders
        across, along = np.sign(x) * np.abs(x) ** 0.9, np.sign(f) * np.abs(f) ** 0.9
        rows.append(np.column_stack([width * across, y - drop * (y > -0.6), z + depth * along]))
    return np.concatenate(rows), grid_faces(len(BUST), BUST_COLUMNS)


def build() -> Mesh:
    """All pieces. Parts: skull, lining_*, bag, ear_*, bust, eye_* (left and right are the person's; right is at x < 0).

    Rings: lid0_* to lid3_* and lip0 to lip4, innermost first; contour_*, brow_* and middle (chin and nose) hold the other landmarks.
    """
    surface, mesh = Surface(), Mesh()
    points: list[np.ndarray] = []
    charts: list[np.ndarray] = []  # where triangulation sees the points

    def put(name: str, ring_N3: np.ndarray, chart_N3: np.ndarray | None = None) -> None:
        mesh.rings[name] = sum(map(len, points)) + np.arange(len(ring_N3))
        points.append(ring_N3)
        charts.append(ring_N3 if chart_N3 is None else chart_N3)

    for level, (scale, lift) in enumerate([(1.0, 0.0035), (1.28, 0.0075), (1.62, 0.009), (2.1, 0.01)]):
        lids = _lids(surface, scale, lift)
        flat = lids.copy()
        flat[:, 2] += (1 - level / 3) * (
            0.262 - flat[:, 2]
        )  # evenly spread, so that each ring is joined to the next one only
        put(f"lid{level}_left", lids, flat)
        put(f"lid{level}_right", mirror(lids), mirror(flat))
    lips = [
        (0.0735, 0.0005, 0.0005, -0.002, 0.0),
        (0.0755, 0.012, 0.014, 0.009, 0.001),
        (0.0805, 0.0235, 0.030, 0.002, 0.004),
    ]
    for level, (width, up, down, lift, bow) in enumerate(
        [*lips, (0.098, 0.036, 0.045, 0.0, 0.0), (0.125, 0.050, 0.062, 0.0, 0.0)]
    ):
        put(f"lip{level}", _lip_ring(surface, width, up, down, lift, bow))
    half = np.array(CONTOUR[:-1] + BROW)
    put("contour_right", half[:8])
    put("brow_right", half[8:])
    put("contour_left", mirror(half[:8]))
    put("brow_left", mirror(half[8:]))
    nose = np.array(NOSE)
    put("middle", np.concatenate([[CONTOUR[-1]], nose, mirror(nose[[4, 5]])]))
    fixed = _unit(np.concatenate(charts))
    rest = _fill(fixed)
    skull = np.concatenate([*points, surface(rest)])
    faces = hull_faces(np.concatenate([fixed, rest]))
    for hole in ("lid0_left", "lid0_right", "lip0"):
        faces = faces[~np.isin(faces, mesh.rings[hole]).all(axis=1)]
    mesh.add("skull", skull, faces)

    nxt = np.roll(np.arange(RING), -1)
    for name, sign in (("right", -1), ("left", 1)):  # the lids' lining closes the corners of the eyes
        margin, centre = mesh.rings[f"lid0_{name}"], EYE_CENTRE * [sign, 1, 1]
        lining = mesh.add(
            f"lining_{name}", centre + (skull[margin] - centre) * [0.8, 0.8, 0.0] - [0, 0, 0.005]
        )
        strip = np.concatenate(
            [
                np.column_stack([margin, margin[nxt], lining]),
                np.column_stack([margin[nxt], lining[nxt], lining]),
            ]
        )
        mesh.faces.append(strip[:, ::sign])
    lip = skull[mesh.rings["lip0"]]
    side = np.sign(np.round(lip[:, 1] - np.median(lip[:, 1]), 5))[:, None] * np.array([0, 1.0, 0])
    shapes = ((0.96, 0.010, 0.018), (0.9, 0.028, 0.06), (0.85, 0.036, 0.12))
    rows = [lip * [narrow, 1, 1] + side * rise - [0, 0, back] for narrow, rise, back in shapes]
    bag = np.concatenate([*rows, [[0, MOUTH_CENTRE[1], 0.17]]])
    ring = np.arange(LIPS)
    cap = np.column_stack([np.full(LIPS, 3 * LIPS), 2 * LIPS + (ring + 1) % LIPS, 2 * LIPS + ring])
    mesh.add("bag", bag, np.concatenate([grid_faces(3, LIPS)[:, ::-1], cap[:, ::-1]]))
    seam, first = mesh.rings["lip0"], mesh.part["bag"][:LIPS]
    nxt = np.roll(np.arange(LIPS), -1)
    mesh.faces.append(
        np.concatenate(
            [np.column_stack([seam[nxt], first, seam]), np.column_stack([first[nxt], first, seam[nxt]])]
        )
    )
    for name, sign in (("right", -1), ("left", 1)):
        ear, ear_faces = _ear()
        mesh.add(f"ear_{name}", ear * [sign, 1, 1], ear_faces if sign < 0 else ear_faces[:, ::-1])
    mesh.add("bust", *_bust())
    for name, sign in (("right", -1), ("left", 1)):
        mesh.add(f"eye_{name}", *_eyeball(EYE_CENTRE * [sign, 1, 1]))
    return mesh


def landmark_vertices(mesh: Mesh) -> np.ndarray:
    """The vertices (68,) that are the iBUG landmarks, where face mesh models find them."""
    rings, middle = mesh.rings, mesh.rings["middle"]
    right, left = rings["lid0_right"], rings["lid0_left"]
    outer, inner = rings["lip2"], rings["lip0"]
    return np.concatenate([
        rings["contour_right"], [middle[0]], rings["contour_left"][::-1], rings["brow_right"], rings["brow_left"][::-1],
        middle[1:5], [middle[5], middle[6], middle[7], middle[9], middle[8]], right[[0, 3, 5, 8, 11, 13]], left[[8, 5, 3, 0, 13, 11]],
        outer[[10, 8, 6, 5, 4, 2, 0, 18, 16, 15, 14, 12]], inner[[10, 7, 5, 3, 0, 17, 15, 13]],
    ])  # fmt: skip
