"""The drawable geometry of a generated person: the stand-in head plus hair and teeth, posed for a moment.

Lengths are world units.
"""

from dataclasses import dataclass, field
from functools import cache

import numpy as np
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from pipeline.geometry.mesh import Mesh, grid_faces, mirror
from pipeline.geometry.standin import JOINTS, UNIT, standin, standin_mesh
from pipeline.geometry.standin_directions import SHAPES, bump
from pipeline.geometry.standin_openings import EYE_CENTRE
from pipeline.geometry.standin_skull import Surface
from pipeline.synthetic import hair
from pipeline.synthetic.person import Person

SKIN, BUST, EYE, MOUTH, HAIR, TEETH = range(6)  # materials
TEETH_ROWS, TEETH_COLUMNS = 3, 15
# What a face does beyond the 3DMM. Reenactment that knows FLAME's numbers alone cannot get it right.
EXTRA = (
    "asymmetry",
    "wrinkles",
    "frown_lines",
    "puff_left",
    "puff_right",
    "dimples",
    "sway_side",
    "sway_depth",
    "lip_bite",
    "nostrils",
)


@dataclass(frozen=True)
class Moment:
    """What a face does: FLAME's part (expression, jaw, eyes: axis-angle, left then right) and what FLAME has
    no number for (`extra`).

    `body` turns the bust relative to the head, about the neck joint (rotation vector in the head's own
    frame).
    """

    expression: np.ndarray = field(default_factory=lambda: np.zeros(100))
    jaw: np.ndarray = field(default_factory=lambda: np.zeros(3))
    eyes: np.ndarray = field(default_factory=lambda: np.zeros(6))
    extra: np.ndarray = field(default_factory=lambda: np.zeros(len(EXTRA)))
    body: np.ndarray = field(default_factory=lambda: np.zeros(3))

    @property
    def beyond(self) -> dict[str, float]:
        """`extra` by name."""
        return dict(zip(EXTRA, self.extra.tolist(), strict=True))


@dataclass(frozen=True)
class Shared:
    """What is the same for everybody: template, topology, materials and per-vertex paint coordinates.

    V' = head + teeth + hair vertices.
    """

    template: np.ndarray  # (V', 3)
    faces: np.ndarray  # (F', 3)
    material: np.ndarray  # (F',)
    two_sided: np.ndarray  # (F',) bool
    weights: np.ndarray  # (V', 5)
    lip: np.ndarray  # (V',) 1 on the lips
    lid: np.ndarray  # (V',) 1 at the lid margin, falling outwards
    normal_sum: csr_matrix  # (V', F'): sums the normals of a vertex' faces
    head: slice
    teeth: slice
    hair: slice
    surface: Surface


@cache
def shared_parts() -> Shared:
    """The shared part, built once a process."""
    model, mesh = standin(), standin_mesh()
    head = np.asarray(model.template_V3) * UNIT
    teeth = _teeth()
    grid = hair.hair_grid()
    strands = hair.hair_faces()
    strip_faces = grid_faces(TEETH_ROWS, TEETH_COLUMNS, closed=False)
    # Vertices: head, upper row of teeth, lower row, hair.
    upper = len(head)
    lower = upper + TEETH_ROWS * TEETH_COLUMNS
    first_hair = upper + len(teeth)
    weights = np.zeros((first_hair + len(grid), 5))
    weights[:upper] = model.skin_weights
    weights[upper:lower, 1] = 1.0
    weights[lower:first_hair, 2] = 1.0
    weights[first_hair:, 1] = 1.0
    faces = np.concatenate([model.faces_F3, upper + strip_faces, lower + strip_faces, first_hair + strands])
    material = np.concatenate(
        [
            _head_material(mesh)[model.faces_F3].max(axis=1),
            np.full(2 * len(strip_faces), TEETH),
            np.full(len(strands), HAIR),
        ]
    )
    lip = np.zeros(len(weights))
    lid = np.zeros(len(weights))
    for level, value in enumerate((1.0, 1.0, 0.5)):
        lip[mesh.rings[f"lip{level}"]] = value
    for level, value in enumerate((1.0, 0.6, 0.3)):
        for side in ("left", "right"):
            lid[mesh.rings[f"lid{level}_{side}"]] = value
    corners = np.ones(faces.size)
    place = (faces.ravel(), np.repeat(np.arange(len(faces)), 3))
    return Shared(
        template=np.concatenate([head, teeth, np.zeros((len(grid), 3))]),
        faces=faces,
        material=material,
        two_sided=np.isin(material, (HAIR, TEETH, MOUTH)),
        weights=weights,
        lip=lip,
        lid=lid,
        normal_sum=csr_matrix((corners, place), shape=(len(weights), len(faces))),
        head=slice(0, upper),
        teeth=slice(upper, first_hair),
        hair=slice(first_hair, len(weights)),
        surface=Surface(),
    )


def _teeth() -> np.ndarray:
    """Upper then lower row: two strips on a dental arc, TEETH_ROWS x TEETH_COLUMNS vertices each."""
    rows = _dental_arc(
        heights=(-0.062, -0.082, -0.0985),
        back=0.0,
        reach=1.2,
    )
    # The lower row is shorter and bites behind the upper one.
    rows += _dental_arc(
        heights=(-0.0985, -0.113, -0.128),
        back=0.010,
        reach=0.85,
    )
    return np.concatenate(rows)


def _dental_arc(
    heights: tuple[float, ...],
    back: float,
    reach: float,
) -> list[np.ndarray]:
    angle = np.linspace(-reach, reach, TEETH_COLUMNS)
    rows = []
    for y, tuck in zip(heights, (0.004, 0.0, 0.002), strict=True):
        x = 0.061 * np.sin(angle)
        z = 0.310 - back - tuck - 0.078 * (1 - np.cos(angle))
        rows.append(np.column_stack([x, np.full(TEETH_COLUMNS, y), z]))
    return rows


def _head_material(mesh: Mesh) -> np.ndarray:
    """(V,): the material of each vertex of the head. A triangle has the largest of its corners."""
    material = np.full(mesh.count, SKIN)
    material[mesh.part["bust"]] = BUST
    material[mesh.part["bag"]] = MOUTH
    for side in ("left", "right"):
        material[mesh.part[f"eye_{side}"]] = EYE
    return material


@dataclass(frozen=True)
class Figure:
    """A person at rest: everything that does not change from moment to moment."""

    person: Person
    rest: np.ndarray  # (V', 3) with the person's shape, teeth and hair
    paint: np.ndarray  # (V', 3) coordinates for colours: the template, and (along, around, 0) for hair
    joints: np.ndarray  # (5, 3)
    expression: np.ndarray  # (V, 3, 100) directions, world units


def figure(person: Person) -> Figure:
    """The resting geometry of a person."""
    model = standin()
    mesh = standin_mesh()
    shared = shared_parts()
    rest = shared.template.copy()
    paint = shared.template.copy()
    shift = UNIT * (model.directions_V3K[..., :SHAPES] @ person.shape)
    rest[shared.head] += shift
    # Long hair presses the ears to the head.
    pressed = 0.035 * hair.over_ears(person)
    rest[mesh.part["ear_right"], 0] += pressed
    rest[mesh.part["ear_left"], 0] -= pressed
    rest[shared.teeth] += shift[mesh.rings["lip0"]].mean(0)
    # Hair follows the skull under it: the four nearest vertices, by inverse squared distance.
    strands, _ = hair.hair_points(person, shared.surface)
    skull = mesh.part["skull"]
    distance, index = cKDTree(shared.template[skull]).query(strands, k=4)
    near = 1.0 / (distance**2 + 1e-4)
    moved = (near[..., None] * shift[skull[index]]).sum(1)
    rest[shared.hair] = strands + moved / near.sum(1, keepdims=True)
    paint[shared.hair] = np.column_stack([hair.hair_grid(), np.zeros(len(strands))])
    # Root, neck and jaw are where they are exactly; the regressor hits them up to rounding alone.
    joints = model.joint_regressor @ rest[shared.head]
    regressed = model.joint_regressor[:3] @ (model.template_V3 * UNIT)
    joints[:3] = JOINTS[:3] + (joints[:3] - regressed)
    expression = UNIT * model.directions_V3K[..., SHAPES:].astype(np.float32)
    return Figure(person, rest, paint, joints, expression)


def pose(body: Figure, moment: Moment) -> np.ndarray:
    """Vertices (V', 3) float32 in the head's own frame.

    Linear blend skinning as in FLAME; the bust is turned by `moment.body`.
    """
    shared, model = shared_parts(), standin()
    points = body.rest.copy()
    points[shared.head] += body.expression @ moment.expression.astype(np.float32)
    points[shared.head] += _beyond(shared.template[shared.head], moment)
    points[shared.teeth] += _hidden_teeth(points, shared)
    jaw = Rotation.from_rotvec(moment.jaw).as_matrix()
    if moment.jaw.any():
        opened = (jaw - np.eye(3)).reshape(9) @ model.pose_directions[9:18]
        points[shared.head] += UNIT * opened.reshape(-1, 3)
    turns_33 = np.concatenate([moment.body, moment.eyes]).reshape(3, 3)
    bust, *eyes = Rotation.from_rotvec(turns_33).as_matrix()
    turns = np.stack([bust, np.eye(3), jaw, *eyes])
    # Each joint turns about itself, the bust about the origin: x -> R (x - pivot) + pivot.
    pivots = body.joints * np.array([0, 0, 1, 1, 1])[:, None]
    places = pivots - np.einsum("jab,jb->ja", turns, pivots)
    transforms = np.concatenate([turns.reshape(5, 9), places], axis=1)
    skin = (shared.weights @ transforms).astype(np.float32)
    points = points.astype(np.float32)
    matrices = skin[:, :9].reshape(-1, 3, 3)
    posed = np.einsum("vab,vb->va", matrices, points) + skin[:, 9:]
    # Long hair rests on the shoulders and swings.
    strands = posed[shared.hair]
    low = np.clip((0.15 - strands[:, 1]) / 0.5, 0, 1) ** 1.5
    resting = points[shared.hair] @ bust.T
    beyond = moment.beyond
    sway = 0.08 * np.array([beyond["sway_side"], 0.0, beyond["sway_depth"]])
    swinging = 0.6 * (resting - strands) + sway
    posed[shared.hair] = strands + low[:, None] * swinging
    return posed


def _beyond(points_V3: np.ndarray, moment: Moment) -> np.ndarray:
    """Displacement of the head's vertices by what is not in the 3DMM; not linear on purpose."""
    e = moment.beyond
    moved = np.zeros_like(points_V3)
    if e["asymmetry"]:
        side = "left" if e["asymmetry"] > 0 else "right"
        lift = bump(points_V3, (0.07, -0.09, 0.30), (0.035, 0.035, 0.08), side)
        amount = e["asymmetry"]
        pull = np.array([0.008 * amount, 0.016 * abs(amount), 0.004])
        moved += lift[:, None] * pull
    for side, sign in (("left", 1.0), ("right", -1.0)):
        puff = e[f"puff_{side}"]
        if puff:
            cheek = bump(points_V3, (0.125, -0.065, 0.25), (0.045, 0.05, 0.07), side)
            full = puff * cheek**1.5
            moved += full[:, None] * np.array([sign * 0.018, 0.0, 0.022])
    if e["dimples"]:
        pits = bump(points_V3, (0.118, -0.075, 0.27), (0.010, 0.014, 0.04))
        moved -= e["dimples"] * pits[:, None] * np.array([0.0, 0.0, 0.012])
    if e["lip_bite"]:
        lip = bump(points_V3, (0, -0.108, 0.335), (0.04, 0.016, 0.05))
        moved += e["lip_bite"] * lip[:, None] * np.array([0.0, 0.010, -0.014])
    if e["nostrils"]:
        wings = bump(points_V3, (0.046, -0.018, 0.315), (0.014, 0.016, 0.03))
        moved[:, 0] += 0.007 * e["nostrils"] * wings * np.sign(points_V3[:, 0])
    return moved


def _hidden_teeth(points_V3: np.ndarray, shared: Shared) -> np.ndarray:
    """Displacement of the teeth: a pursed mouth keeps them to itself, narrower and further back."""
    left, right = points_V3[standin_mesh().rings["lip0"][[0, 10]]]
    narrow = np.clip(0.5 * (left[0] - right[0]) / 0.070, 0.35, 1.0)
    teeth = points_V3[shared.teeth]
    closer = (teeth - teeth.mean(0)) * [narrow - 1, 0, 0]
    return closer - [0, 0, 0.03 * (1 - narrow)]


def normals(vertices_V3: np.ndarray) -> np.ndarray:
    """Unit vertex normals (V', 3), float32."""
    shared = shared_parts()
    a, b, c = (vertices_V3[shared.faces[:, corner]] for corner in range(3))
    smooth = shared.normal_sum @ np.cross(b - a, c - a)
    length = np.linalg.norm(smooth, axis=1, keepdims=True)
    return (smooth / (length + 1e-12)).astype(np.float32)


def eye_offset(paint_N3: np.ndarray) -> np.ndarray:
    """Unit direction from the centre of its eyeball for paint coordinates on an eye (N, 3)."""
    left = paint_N3[:, :1] > 0
    centre = np.where(left, EYE_CENTRE, mirror(EYE_CENTRE))
    offset = paint_N3 - centre.astype(paint_N3.dtype)
    return offset / np.linalg.norm(offset, axis=1, keepdims=True)
