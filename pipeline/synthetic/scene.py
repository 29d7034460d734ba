"""The drawable geometry of a generated person: the stand-in head plus hair and teeth, posed for a moment.

Lengths are world units.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from pipeline.geometry.curves import ramp
from pipeline.geometry.mesh import Mesh, grid_faces, mirror
from pipeline.geometry.standin import JOINTS, UNIT, standin, standin_mesh
from pipeline.geometry.standin_directions import SHAPES, bump
from pipeline.geometry.standin_openings import EYE_CENTRE
from pipeline.geometry.standin_skull import Surface
from pipeline.synthetic import hair
from pipeline.synthetic.person import Person

SKIN, BUST, EYE, MOUTH, HAIR, TEETH = range(6)  # materials
TEETH_ROWS, TEETH_COLUMNS = 3, 15
TEETH_COUNT = TEETH_ROWS * TEETH_COLUMNS  # vertices of one row of teeth
NECK, JAW = 1, 2  # joints
# How far the paint of lips and lid margins covers the rings of vertices around the openings. It ends softly,
# as a triangle is too large for an edge.
LIP_RINGS = {
    "lip0": 1.0,
    "lip1": 1.0,
    "lip2": 0.5,
}
LID_RINGS = {
    "lid0_left": 1.0,
    "lid0_right": 1.0,
    "lid1_left": 0.6,
    "lid1_right": 0.6,
    "lid2_left": 0.3,
    "lid2_right": 0.3,
}
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
    model = standin()
    head_points = np.asarray(model.template_V3) * UNIT
    # Where its hair is depends on the person; the template has the place for it.
    strands = np.zeros((hair.ROWS * hair.COLUMNS, 3))
    template = np.concatenate([head_points, _teeth(), strands])
    count = len(template)
    head, upper, lower, hanging = _consecutive(
        len(head_points),
        TEETH_COUNT,
        TEETH_COUNT,
        len(strands),
    )
    weights = np.zeros((count, len(JOINTS)))
    weights[head] = model.skin_weights
    weights[upper, NECK] = 1.0
    weights[lower, JAW] = 1.0
    weights[hanging, NECK] = 1.0
    faces, material = _faces(upper.start, lower.start, hanging.start)
    return Shared(
        template=template,
        faces=faces,
        material=material,
        two_sided=np.isin(material, (HAIR, TEETH, MOUTH)),
        weights=weights,
        lip=_on_rings(LIP_RINGS, count),
        lid=_on_rings(LID_RINGS, count),
        normal_sum=_normal_sum(faces, count),
        head=head,
        teeth=slice(upper.start, lower.stop),
        hair=hanging,
        surface=Surface(),
    )


def _consecutive(*counts: int) -> list[slice]:
    """Slices of these lengths, one after the other."""
    ends = np.cumsum(counts).tolist()
    return [slice(end - count, end) for count, end in zip(counts, ends, strict=True)]


def _faces(upper: int, lower: int, hanging: int) -> tuple[np.ndarray, np.ndarray]:
    """Triangles (F', 3) and their materials (F',).

    The arguments are the first vertices of the upper teeth, of the lower teeth and of the hair.
    """
    head = standin().faces_F3
    by_vertex = _head_material(standin_mesh())
    strip = grid_faces(TEETH_ROWS, TEETH_COLUMNS, closed=False)
    strands = hair.hair_faces()
    faces = [head, upper + strip, lower + strip, hanging + strands]
    materials = [
        by_vertex[head].max(axis=1),
        np.full(2 * len(strip), TEETH),
        np.full(len(strands), HAIR),
    ]
    return np.concatenate(faces), np.concatenate(materials)


def _on_rings(amounts: Mapping[str, float], count: int) -> np.ndarray:
    """(count,): the amounts on the named rings of vertices, 0 elsewhere."""
    rings = standin_mesh().rings
    margin = np.zeros(count)
    for name, amount in amounts.items():
        margin[rings[name]] = amount
    return margin


def _normal_sum(faces: np.ndarray, count: int) -> csr_matrix:
    """(count, F'): 1 where a vertex is a corner of a triangle."""
    corners = np.ones(faces.size)
    numbers = np.arange(len(faces))
    columns = np.repeat(numbers, 3)
    place = (faces.ravel(), columns)
    return csr_matrix((corners, place), shape=(count, len(faces)))


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
    x = 0.061 * np.sin(angle)
    sagitta = 0.078 * (1 - np.cos(angle))
    rows = []
    for height, tuck in zip(heights, (0.004, 0.0, 0.002), strict=True):
        y = np.full(TEETH_COLUMNS, height)
        z = 0.310 - back - tuck - sagitta
        rows.append(np.column_stack([x, y, z]))
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
    shared = shared_parts()
    shape_directions = model.directions_V3K[..., :SHAPES]
    shift = UNIT * (shape_directions @ person.shape)
    rest = shared.template.copy()
    rest[shared.head] += shift
    _press_ears(rest, person)
    lip = standin_mesh().rings["lip0"]
    rest[shared.teeth] += shift[lip].mean(0)
    strands, _ = hair.hair_points(person, shared.surface)
    rest[shared.hair] = strands + _shift_of_hair(strands, shift)
    # Colours are looked up at the template's places, so that they move with the skin.
    paint = shared.template.copy()
    paint[shared.hair, :2] = hair.hair_grid()
    expressions = model.directions_V3K[..., SHAPES:]
    return Figure(
        person=person,
        rest=rest,
        paint=paint,
        joints=_joints(rest[shared.head]),
        expression=UNIT * expressions.astype(np.float32),
    )


def _press_ears(rest: np.ndarray, person: Person) -> None:
    """Long hair presses the ears to the head."""
    part = standin_mesh().part
    pressed = 0.035 * hair.over_ears(person)
    rest[part["ear_right"], 0] += pressed
    rest[part["ear_left"], 0] -= pressed


def _shift_of_hair(strands: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Hair follows the skull under it: the four nearest vertices, by inverse squared distance."""
    skull = standin_mesh().part["skull"]
    tree = cKDTree(shared_parts().template[skull])
    distance, index = tree.query(strands, k=4)
    near = 1.0 / (distance**2 + 1e-4)
    below = shift[skull[index]]
    weighted = near[..., None] * below
    moved = weighted.sum(1)
    return moved / near.sum(1, keepdims=True)


def _joints(head_V3: np.ndarray) -> np.ndarray:
    """The joints (5, 3) of a head at rest."""
    model = standin()
    joints = model.joint_regressor @ head_V3
    # Root, neck and jaw are where they are exactly; the regressor hits them up to rounding alone.
    template = model.template_V3 * UNIT
    regressed = model.joint_regressor[:3] @ template
    moved = joints[:3] - regressed
    joints[:3] = JOINTS[:3] + moved
    return joints


def pose(body: Figure, moment: Moment) -> np.ndarray:
    """Vertices (V', 3) float32 in the head's own frame.

    Linear blend skinning as in FLAME; the bust is turned by `moment.body`.
    """
    shared = shared_parts()
    left, right = moment.eyes.reshape(2, 3)
    vectors = [moment.body, np.zeros(3), moment.jaw, left, right]
    turns = Rotation.from_rotvec(np.stack(vectors)).as_matrix()
    points = _unposed(body, moment, turns[JAW]).astype(np.float32)
    # The matrices of the joints are mixed, not the points that they lead to: one product for all vertices.
    mixed = shared.weights @ _transforms(body.joints, turns)
    skin = mixed.astype(np.float32)
    matrices = skin[:, :9].reshape(-1, 3, 3)
    turned = np.einsum("vab,vb->va", matrices, points)
    posed = turned + skin[:, 9:]
    # Hair that lies on the shoulders turns with them.
    lying = points[shared.hair] @ turns[0].T
    posed[shared.hair] = _hung(posed[shared.hair], lying, moment)
    return posed


def _unposed(body: Figure, moment: Moment, jaw: np.ndarray) -> np.ndarray:
    """Vertices (V', 3) with the face of the moment, before any joint turns; `jaw` is its rotation (3, 3)."""
    shared = shared_parts()
    points = body.rest.copy()
    head = shared.head
    expression = moment.expression.astype(np.float32)
    points[head] += body.expression @ expression
    points[head] += _beyond(shared.template[head], moment)
    points[shared.teeth] += _hidden_teeth(points, shared)
    # FLAME's pose correctives are linear in R - I, which a closed mouth leaves at zero.
    if moment.jaw.any():
        correctives = standin().pose_directions[9:18]
        turned = (jaw - np.eye(3)).reshape(9)
        opened = (turned @ correctives).reshape(-1, 3)
        points[head] += UNIT * opened
    return points


def _transforms(joints: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """(5, 12): rotation matrix and translation of every joint, x -> R (x - pivot) + pivot."""
    # Each joint turns about itself, the bust about the origin.
    itself = np.array([0, 0, 1, 1, 1])
    pivots = joints * itself[:, None]
    turned = np.einsum("jab,jb->ja", turns, pivots)
    places = pivots - turned
    matrices = turns.reshape(-1, 9)
    return np.concatenate([matrices, places], axis=1)


def _hung(
    strands: np.ndarray,
    lying: np.ndarray,
    moment: Moment,
) -> np.ndarray:
    """Hair that turned with the head (N, 3), where its long part rests on the shoulders and swings.

    `lying` is the same hair as it is when it follows the shoulders alone.
    """
    drop = 0.15 - strands[:, 1]
    low = ramp(drop, start=0.0, width=0.5) ** 1.5
    beyond = moment.beyond
    sway = 0.08 * np.array([beyond["sway_side"], 0.0, beyond["sway_depth"]])
    swinging = 0.6 * (lying - strands) + sway
    return strands + low[:, None] * swinging


def _asymmetry(points_V3: np.ndarray, amount: float) -> np.ndarray:
    """One corner of the mouth is drawn up: the left one for positive amounts."""
    lift = bump(
        points_V3,
        centre=(0.07, -0.09, 0.30),
        widths=(0.035, 0.035, 0.08),
        side="left" if amount > 0 else "right",
    )
    pull = np.array([0.008 * amount, 0.016 * abs(amount), 0.004])
    return lift[:, None] * pull


def _puff(points_V3: np.ndarray, amount: float, side: str) -> np.ndarray:
    """A cheek is full of air."""
    cheek = bump(
        points_V3,
        centre=(0.125, -0.065, 0.25),
        widths=(0.045, 0.05, 0.07),
        side=side,
    )
    outwards = 0.018 if side == "left" else -0.018
    full = amount * cheek**1.5
    return full[:, None] * np.array([outwards, 0.0, 0.022])


def _dimples(points_V3: np.ndarray, amount: float) -> np.ndarray:
    """Pits beside the corners of the mouth."""
    pits = bump(
        points_V3,
        centre=(0.118, -0.075, 0.27),
        widths=(0.010, 0.014, 0.04),
    )
    return amount * pits[:, None] * np.array([0.0, 0.0, -0.012])


def _lip_bite(points_V3: np.ndarray, amount: float) -> np.ndarray:
    """The lower lip goes up and in, under the upper teeth."""
    lip = bump(
        points_V3,
        centre=(0, -0.108, 0.335),
        widths=(0.04, 0.016, 0.05),
    )
    return amount * lip[:, None] * np.array([0.0, 0.010, -0.014])


def _nostrils(points_V3: np.ndarray, amount: float) -> np.ndarray:
    """The wings of the nose go apart."""
    wings = bump(
        points_V3,
        centre=(0.046, -0.018, 0.315),
        widths=(0.014, 0.016, 0.03),
    )
    moved = np.zeros_like(points_V3)
    moved[:, 0] = 0.007 * amount * wings * np.sign(points_V3[:, 0])
    return moved


# The entries of EXTRA that move the skin; the others are painted, or move the hair.
DISPLACEMENTS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "asymmetry": _asymmetry,
    "puff_left": partial(_puff, side="left"),
    "puff_right": partial(_puff, side="right"),
    "dimples": _dimples,
    "lip_bite": _lip_bite,
    "nostrils": _nostrils,
}


def _beyond(points_V3: np.ndarray, moment: Moment) -> np.ndarray:
    """Displacement of the head's vertices by what is not in the 3DMM; not linear on purpose."""
    amounts = moment.beyond
    moved = np.zeros_like(points_V3)
    for name, displacement in DISPLACEMENTS.items():
        # Most faces do few of them, and each is a Gaussian of every vertex.
        if amounts[name]:
            moved += displacement(points_V3, amounts[name])
    return moved


def _hidden_teeth(points_V3: np.ndarray, shared: Shared) -> np.ndarray:
    """Displacement of the teeth: a pursed mouth keeps them to itself, narrower and further back."""
    corners = standin_mesh().rings["lip0"][[0, 10]]
    left, right = points_V3[corners]
    half_width = 0.5 * (left[0] - right[0])
    narrow = np.clip(half_width / 0.070, 0.35, 1.0)
    teeth = points_V3[shared.teeth]
    from_middle = teeth - teeth.mean(0)
    closer = from_middle * [narrow - 1, 0, 0]
    back = 0.03 * (1 - narrow)
    return closer - [0, 0, back]


def normals(vertices_V3: np.ndarray) -> np.ndarray:
    """Unit vertex normals (V', 3), float32."""
    shared = shared_parts()
    a, b, c = (vertices_V3[shared.faces[:, corner]] for corner in range(3))
    # The cross product is twice the area long, so that large triangles count for more.
    crossed = np.cross(b - a, c - a)
    smooth = shared.normal_sum @ crossed
    length = np.linalg.norm(smooth, axis=1, keepdims=True)
    unit = smooth / (length + 1e-12)
    return unit.astype(np.float32)


def eye_offset(paint_N3: np.ndarray) -> np.ndarray:
    """Unit direction from the centre of its eyeball for paint coordinates on an eye (N, 3)."""
    left = paint_N3[:, :1] > 0
    centre = np.where(left, EYE_CENTRE, mirror(EYE_CENTRE))
    offset = paint_N3 - centre.astype(paint_N3.dtype)
    length = np.linalg.norm(offset, axis=1, keepdims=True)
    return offset / length
