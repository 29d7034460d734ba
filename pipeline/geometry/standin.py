"""A stand-in for FLAME in its format, which is not FLAME and says so.

It exists because FLAME needs registration and the whole graph should run without it. It has FLAME's axes,
joints and size (metres), 300 shape and 100 expression directions of its own, and about 1,700 vertices.
"""

from functools import cache

import numpy as np

from model.head.flame import HeadModel
from pipeline.geometry import standin_directions, standin_surface
from pipeline.geometry.curves import step_between
from pipeline.geometry.mesh import Mesh, grid_faces, hull_faces, unit
from pipeline.geometry.standin_openings import EYE_CENTRE, LIPS, MOUTH_CENTRE
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
        EYE_CENTRE,
        EYE_CENTRE * [-1, 1, 1],
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
    weights = skin_weights(mesh, points)
    landmark_faces, landmark_weights = _landmarks(mesh, faces)
    simple, simple_faces = _simplified(mesh, points)
    return HeadModel(
        name="standin",
        template_V3=points / UNIT,
        directions_V3K=np.concatenate([shapes, expressions], axis=2) / UNIT,
        pose_directions=_pose_directions(points),
        joint_regressor=joint_regressor(mesh, points),
        skin_weights=weights,
        parents=np.array([-1, 0, 1, 1, 1]),
        faces_F3=faces.astype(np.int64),
        landmark_faces=landmark_faces,
        landmark_weights=landmark_weights,
        regions=_regions(mesh, len(points)),
        simple_vertices=np.repeat(simple[:, None], 3, axis=1),
        simple_weights=np.tile([1.0, 0.0, 0.0], (len(simple), 1)),
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
    weights[bust, 1] = step_between(points_V3[bust, 1], -0.42, -0.10)
    weights[bust, 0] = 1 - weights[bust, 1]
    for side, joint in EYE_JOINTS.items():
        weights[mesh.part[f"eye_{side}"]] = np.eye(5)[joint]
    return weights


def _jaw_weights(mesh: Mesh, points_V3: np.ndarray) -> np.ndarray:
    _, y, z = points_V3.T
    # What follows the jaw lies below a line from the lips up towards the hinge, and not at the nape.
    line = MOUTH_CENTRE[1] + 0.30 * np.clip(0.29 - z, 0, None)
    below = step_between(line - y, -0.012, 0.035)
    front = step_between(z, 0.02, 0.20)
    throat = step_between(-y, 0.2, 0.3) * step_between(-z, -0.3, -0.1)
    jaw = below * front * (1 - 0.4 * throat)
    for part in ("bust", "ear_left", "ear_right"):
        jaw[mesh.part[part]] = 0.0
    # The two lips part sharply in the middle, softly at the corners.
    turn = np.sin(2 * np.pi * np.arange(LIPS) / LIPS)
    middle = np.clip(np.abs(turn) / 0.55, 0, 1)
    parted = 0.32 + np.where(turn > 0, -0.32, 0.68) * middle
    for level, share in enumerate((1.0, 1.0, 0.9)):
        ring = mesh.rings[f"lip{level}"]
        jaw[ring] = share * parted + (1 - share) * jaw[ring]
    bag = mesh.part["bag"]
    fading = np.repeat([1.0, 0.95, 0.85], LIPS)
    jaw[bag[:-1]] = np.tile(jaw[mesh.rings["lip0"]], 3) * fading
    jaw[bag[-1]] = 0.35
    return jaw


def joint_regressor(mesh: Mesh, points_V3: np.ndarray) -> np.ndarray:
    """(5, V): the weights of vertices whose mean is a joint.

    The eyes are the means of their balls. For the other joints these are the smallest weights, as squares,
    over the vertices around them that hit them and sum to one.
    """
    regressor = np.zeros((5, len(points_V3)))
    allowed = np.concatenate([mesh.part["skull"], mesh.part["bust"]])
    for joint in range(3):
        distance = np.linalg.norm(points_V3[allowed] - JOINTS[joint], axis=1)
        near = allowed[np.argsort(distance, kind="stable")[:200]]
        system = np.vstack([points_V3[near].T, np.ones(len(near))])
        regressor[joint, near] = np.linalg.pinv(system) @ np.append(JOINTS[joint], 1.0)
    for side, joint in EYE_JOINTS.items():
        ball = mesh.part[f"eye_{side}"]
        regressor[joint, ball] = 1.0 / len(ball)
    return regressor


def _pose_directions(points_V3: np.ndarray) -> np.ndarray:
    """(36, V*3), metres: an open jaw pulls the cheeks in a little; the other rotations need no corrective."""
    cheeks = standin_directions.bump(points_V3, (0.15, -0.08, 0.22), (0.06, 0.07, 0.09))
    hollow = cheeks[:, None] * np.array([-1.0, 0, -0.4])
    hollow[:, 0] *= np.tanh(points_V3[:, 0] / 0.05)
    correctives = np.zeros((36, len(points_V3), 3))
    # Nine entries of each joint's rotation; entry (2, 1) of the jaw's is the sine of its opening.
    correctives[9 + 7] = 0.04 / UNIT * hollow
    return correctives.reshape(36, -1)


def _landmarks(mesh: Mesh, faces_F3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A triangle of each landmark (70,) and barycentric weights (70, 3); all landmarks are vertices."""
    # The pole of an eyeball, its last vertex but one, is the pupil.
    pupils = [mesh.part["eye_right"][-2], mesh.part["eye_left"][-2]]
    vertices = np.concatenate([standin_surface.landmark_vertices(mesh), pupils])
    touching = [np.flatnonzero((faces_F3 == vertex).any(axis=1)) for vertex in vertices]
    chosen = np.array([faces[0] for faces in touching])
    corners = faces_F3[chosen] == vertices[:, None]
    return chosen, corners.astype(np.float64)


def _regions(mesh: Mesh, count: int) -> dict[str, np.ndarray]:
    """The vertices of the regions that a head model must name."""
    left = mesh.part["eye_left"]
    right = mesh.part["eye_right"]
    eyes = np.concatenate([left, right])
    lips = [mesh.rings[f"lip{level}"] for level in range(3)]
    lids = [mesh.rings[f"lid{level}_{side}"] for side in EYE_JOINTS for level in range(3)]
    return {
        "face": np.setdiff1d(np.arange(count), eyes),
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
    # Farthest points: each next vertex is the one that is farthest from all before it.
    skull = mesh.part["skull"]
    spread = [int(skull[0])]
    distance = np.full(len(skull), np.inf)
    while len(spread) < SIMPLE:
        to_last = np.linalg.norm(points_V3[skull] - points_V3[spread[-1]], axis=1)
        distance = np.minimum(distance, to_last)
        spread.append(int(skull[np.argmax(distance)]))
    coarse = np.sort(spread)
    faces = hull_faces(unit(points_V3[coarse]))
    bust = mesh.part["bust"].reshape(len(BUST), BUST_COLUMNS)[1::2, ::2]
    bust_faces = len(coarse) + grid_faces(*bust.shape)
    return np.concatenate([coarse, bust.ravel()]), np.concatenate([faces, bust_faces])


def _neighbours(faces_F3: np.ndarray, points_V3: np.ndarray) -> np.ndarray:
    """(V, 10): the vertex and its nearest connected ones, at most two edges away; padded with V."""
    count = len(points_V3)
    linked: list[set[int]] = [{vertex} for vertex in range(count)]
    for triangle in faces_F3.tolist():
        for vertex in triangle:
            linked[vertex].update(triangle)
    table = np.full((count, NEIGHBOURS), count)
    for vertex in range(count):
        two_edges = set().union(*(linked[other] for other in linked[vertex]))
        around = np.array(sorted(two_edges))
        distance = np.linalg.norm(points_V3[around] - points_V3[vertex], axis=1)
        nearest = around[np.argsort(distance, kind="stable")[:NEIGHBOURS]]
        table[vertex, : len(nearest)] = nearest
    return table
