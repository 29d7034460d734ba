"""A stand-in for FLAME in its format, which is not FLAME and says so.

It exists because FLAME needs registration and the whole graph should run without it. It has FLAME's axes,
joints and size (metres), 300 shape and 100 expression directions of its own, and about 1,700 vertices.
"""

from functools import cache

import numpy as np

from model.head.flame import HeadModel
from pipeline.geometry import standin_directions, standin_surface
from pipeline.geometry.curves import circle, step_between
from pipeline.geometry.mesh import Mesh, grid_faces, hull_faces, unit
from pipeline.geometry.standin_openings import LIPS, MOUTH_CENTRE, eye_centre
from pipeline.geometry.standin_pieces import BUST, BUST_COLUMNS

UNIT = 3.0  # world units a metre
SIMPLE = 380  # vertices of the simplified skull
NEIGHBOURS = 10  # of a vertex, itself included
EYE_JOINTS = {"left": 3, "right": 4}
# World units: root, neck, jaw, left eye, right eye.
JOINTS = np.array(
    [
        [0.0, -0.24, -0.05],
        [0.0, 0.0, 0.0],
        [0.0, -0.01, 0.055],
        eye_centre("left"),
        eye_centre("right"),
    ]
)


@cache
def standin() -> HeadModel:
    """The stand-in head model (see the head of this module).

    Deterministic; built once a process in about a second.
    """
    mesh = standin_mesh()
    points = np.concatenate(mesh.points)
    faces = np.concatenate(mesh.faces)
    shapes = standin_directions.shape_directions(mesh, points)
    expressions = standin_directions.expression_directions(mesh, points)
    directions = np.concatenate([shapes, expressions], axis=2)
    landmark_faces, landmark_weights = _landmarks(mesh, faces)
    simple, simple_faces = _simplified(mesh, points)
    # The format allows for points within triangles; these ones are vertices.
    one_corner = np.array([1.0, 0.0, 0.0])
    return HeadModel(
        name="standin",
        template_V3=points / UNIT,
        directions_V3K=directions / UNIT,
        pose_directions=_pose_directions(points),
        joint_regressor=joint_regressor(mesh, points),
        skin_weights=skin_weights(mesh, points),
        parents=np.array([-1, 0, 1, 1, 1]),
        faces_F3=faces.astype(np.int64),
        landmark_faces=landmark_faces,
        landmark_weights=landmark_weights,
        regions=_regions(mesh, len(points)),
        simple_vertices=np.repeat(simple[:, None], 3, axis=1),
        simple_weights=np.tile(one_corner, (len(simple), 1)),
        simple_faces=simple_faces,
        neighbours=_neighbours(faces, points),
    )


@cache
def standin_mesh() -> Mesh:
    """The surface that the stand-in is made of, with its parts and rings by name."""
    return standin_surface.build()


def skin_weights(mesh: Mesh, points_V3: np.ndarray) -> np.ndarray:
    """(V, 5): bust to neck from the shoulders up, the lower face to the jaw, eyeballs to their joints."""
    weights = np.zeros((len(points_V3), 5))
    jaw = _jaw_weights(mesh, points_V3)
    weights[:, 2] = jaw
    weights[:, 1] = 1 - jaw
    bust = mesh.part["bust"]
    height = points_V3[bust, 1]
    neck = step_between(height, -0.42, -0.10)
    weights[bust, 1] = neck
    weights[bust, 0] = 1 - neck
    for side, joint in EYE_JOINTS.items():
        ball = mesh.part[f"eye_{side}"]
        weights[ball] = 0.0
        weights[ball, joint] = 1.0
    return weights


def _jaw_weights(mesh: Mesh, points_V3: np.ndarray) -> np.ndarray:
    _, y, z = points_V3.T
    # What follows the jaw lies below a line from the lips up towards the hinge, and not at the nape.
    behind_lips = np.clip(0.29 - z, 0, None)
    line = MOUTH_CENTRE[1] + 0.30 * behind_lips
    below = step_between(line - y, -0.012, 0.035)
    front = step_between(z, 0.02, 0.20)
    under_chin = step_between(-y, 0.2, 0.3)
    before_nape = step_between(-z, -0.3, -0.1)
    throat = under_chin * before_nape
    jaw = below * front * (1 - 0.4 * throat)
    for part in ("bust", "ear_left", "ear_right"):
        jaw[mesh.part[part]] = 0.0
    _part_lips(mesh, jaw)
    return jaw


def _part_lips(mesh: Mesh, jaw_V: np.ndarray) -> None:
    """Set the weights of lips and mouth bag: sharply apart in the middle, softly at the corners."""
    height = np.sin(circle(LIPS))
    middle = np.clip(np.abs(height) / 0.55, 0, 1)
    upper_or_lower = np.where(height > 0, -0.32, 0.68)
    parted = 0.32 + upper_or_lower * middle
    for level, share in enumerate((1.0, 1.0, 0.9)):
        ring = mesh.rings[f"lip{level}"]
        skin = (1 - share) * jaw_V[ring]
        jaw_V[ring] = share * parted + skin
    # The bag follows the lips less and less, the deeper it is.
    bag = mesh.part["bag"]
    seam = jaw_V[mesh.rings["lip0"]]
    fading = np.repeat([1.0, 0.95, 0.85], LIPS)
    jaw_V[bag[:-1]] = np.tile(seam, 3) * fading
    jaw_V[bag[-1]] = 0.35


def joint_regressor(mesh: Mesh, points_V3: np.ndarray) -> np.ndarray:
    """(5, V): the weights of vertices whose mean is a joint.

    The eyes are the means of their balls. For the other joints these are the smallest weights, as squares,
    over the vertices around them that hit them and sum to one.
    """
    regressor = np.zeros((5, len(points_V3)))
    allowed = np.concatenate([mesh.part["skull"], mesh.part["bust"]])
    for joint in range(3):
        place = JOINTS[joint]
        nearest = _nearest(points_V3[allowed], place, 200)
        near = allowed[nearest]
        # A column for each vertex: its three coordinates, and the one that the weights sum to.
        ones = np.ones(len(near))
        system = np.vstack([points_V3[near].T, ones])
        wanted = np.append(place, 1.0)
        regressor[joint, near] = np.linalg.pinv(system) @ wanted
    for side, joint in EYE_JOINTS.items():
        ball = mesh.part[f"eye_{side}"]
        regressor[joint, ball] = 1.0 / len(ball)
    return regressor


def _nearest(
    points_N3: np.ndarray,
    place_3: np.ndarray,
    count: int,
) -> np.ndarray:
    """The numbers of the `count` points next to a place, nearest first."""
    offset = points_N3 - place_3
    distance = np.linalg.norm(offset, axis=1)
    order = np.argsort(distance, kind="stable")
    return order[:count]


def _pose_directions(points_V3: np.ndarray) -> np.ndarray:
    """(36, V*3), metres: an open jaw pulls the cheeks in a little; the other rotations need no corrective."""
    cheeks = standin_directions.bump(
        points_V3,
        centre=(0.15, -0.08, 0.22),
        widths=(0.06, 0.07, 0.09),
    )
    inwards = np.array([-1.0, 0, -0.4])
    hollow = cheeks[:, None] * inwards
    # Sideways displacement changes sign in the middle of the face.
    x = points_V3[:, 0]
    hollow[:, 0] *= np.tanh(x / 0.05)
    correctives = np.zeros((36, len(points_V3), 3))
    # Nine entries of each joint's rotation; entry (2, 1) of the jaw's is the sine of its opening.
    correctives[9 + 7] = 0.04 / UNIT * hollow
    return correctives.reshape(36, -1)


def _landmarks(mesh: Mesh, faces_F3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A triangle of each landmark (70,) and barycentric weights (70, 3); all landmarks are vertices."""
    # The pole of an eyeball, its last vertex but one, is the pupil.
    pupils = [
        mesh.part["eye_right"][-2],
        mesh.part["eye_left"][-2],
    ]
    skin = standin_surface.landmark_vertices(mesh)
    vertices = np.concatenate([skin, pupils])
    # The first triangle at the vertex: any of them would do.
    chosen = [_first_face(faces_F3, vertex) for vertex in vertices]
    corners = faces_F3[chosen] == vertices[:, None]
    return np.array(chosen), corners.astype(np.float64)


def _first_face(faces_F3: np.ndarray, vertex: int) -> np.intp:
    """The number of the first triangle with this vertex."""
    touches = (faces_F3 == vertex).any(axis=1)
    return np.argmax(touches)


def _regions(mesh: Mesh, count: int) -> dict[str, np.ndarray]:
    """The vertices of the regions that a head model must name."""
    left = mesh.part["eye_left"]
    right = mesh.part["eye_right"]
    eyes = np.concatenate([left, right])
    everything = np.arange(count)
    lips = [mesh.rings[f"lip{level}"] for level in range(3)]
    lids = [mesh.rings[f"lid{level}_{side}"] for side in EYE_JOINTS for level in range(3)]
    return {
        "face": np.setdiff1d(everything, eyes),
        "eyes": np.sort(eyes),
        "left_eye": left,
        "right_eye": right,
        "lips": np.sort(np.concatenate(lips)),
        "eyelids": np.sort(np.concatenate(lids)),
        "neck": mesh.part["bust"],
    }


def _simplified(mesh: Mesh, points_V3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertex indices (N,) and faces (M, 3) of a coarse head.

    It is a closed skull, whose holes are covered, and every other ring of the bust.
    """
    skull = mesh.part["skull"]
    spread = _spread(points_V3[skull], SIMPLE)
    coarse = np.sort(skull[spread])
    directions = unit(points_V3[coarse])
    skull_faces = hull_faces(directions)
    rings = mesh.part["bust"].reshape(len(BUST), BUST_COLUMNS)
    bust = rings[1::2, ::2]
    bust_faces = len(coarse) + grid_faces(*bust.shape)
    vertices = np.concatenate([coarse, bust.ravel()])
    faces = np.concatenate([skull_faces, bust_faces])
    return vertices, faces


def _spread(points_N3: np.ndarray, count: int) -> list[int]:
    """The numbers of `count` points: the first one, then always the one that is farthest from all before."""
    chosen = [0]
    distance = np.full(len(points_N3), np.inf)
    while len(chosen) < count:
        offset = points_N3 - points_N3[chosen[-1]]
        to_last = np.linalg.norm(offset, axis=1)
        distance = np.minimum(distance, to_last)
        farthest = distance.argmax()
        chosen.append(int(farthest))
    return chosen


def _neighbours(faces_F3: np.ndarray, points_V3: np.ndarray) -> np.ndarray:
    """(V, 10): the vertex and its nearest connected ones, at most two edges away; padded with V."""
    count = len(points_V3)
    linked: list[set[int]] = [{vertex} for vertex in range(count)]
    for triangle in faces_F3.tolist():
        for vertex in triangle:
            linked[vertex].update(triangle)
    table = np.full((count, NEIGHBOURS), count)
    for vertex, place in enumerate(points_V3):
        one_edge = [linked[other] for other in linked[vertex]]
        two_edges = set().union(*one_edge)
        around = np.array(sorted(two_edges))
        order = _nearest(points_V3[around], place, NEIGHBOURS)
        table[vertex, : len(order)] = around[order]
    return table
