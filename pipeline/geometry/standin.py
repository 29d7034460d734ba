"""A stand-in for FLAME in its format, which is not FLAME and says so.

It exists because FLAME needs registration and nobody should need it to see the whole graph run. It has FLAME's axes, joints and size
(metres), 300 shape and 100 expression directions of its own, and about 1,700 vertices.
"""

from functools import cache

import numpy as np

from model.head.flame import HeadModel
from pipeline.geometry import standin_directions, standin_surface
from pipeline.geometry.standin_surface import EYE_CENTRE, MOUTH_CENTRE, Mesh

UNIT = 3.0  # world units a metre
JOINTS = np.array(
    [[0.0, -0.24, -0.05], [0.0, 0.0, 0.0], [0.0, -0.01, 0.055], EYE_CENTRE, EYE_CENTRE * [-1, 1, 1]]
)


def _smooth(x: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def skin_weights(mesh: Mesh, points_V3: np.ndarray) -> np.ndarray:
    """(V, 5): bust to neck from the shoulders up, the lower face to the jaw, eyeballs to their joints."""
    _, y, z = points_V3.T
    weights = np.zeros((len(points_V3), 5))
    line = MOUTH_CENTRE[1] + 0.30 * np.clip(0.29 - z, 0, None)  # from the lips up towards the hinge
    jaw = (
        _smooth(line - y, -0.012, 0.035)
        * _smooth(z, 0.02, 0.20)
        * (1 - 0.4 * _smooth(-y, 0.2, 0.3) * _smooth(-z, -0.3, -0.1))
    )
    jaw[np.concatenate([mesh.part[k] for k in ("bust", "ear_left", "ear_right")])] = 0.0
    turn = np.sin(2 * np.pi * np.arange(standin_surface.LIPS) / standin_surface.LIPS)
    for level, open_ in enumerate(
        (1.0, 1.0, 0.9)
    ):  # the two lips part sharply in the middle, softly at the corners
        ring = mesh.rings[f"lip{level}"]
        parted = 0.32 + np.where(turn > 0, -0.32, 0.68) * np.clip(np.abs(turn) / 0.55, 0, 1)
        jaw[ring] = open_ * parted + (1 - open_) * jaw[ring]
    bag = mesh.part["bag"]
    jaw[bag[:-1]] = np.tile(jaw[mesh.rings["lip0"]], 3) * np.repeat([1.0, 0.95, 0.85], standin_surface.LIPS)
    jaw[bag[-1]] = 0.35
    weights[:, 2] = jaw
    weights[:, 1] = 1 - jaw
    bust = mesh.part["bust"]
    weights[bust, 1] = _smooth(y[bust], -0.42, -0.10)
    weights[bust, 0] = 1 - weights[bust, 1]
    for joint, side in ((3, "left"), (4, "right")):
        weights[mesh.part[f"eye_{side}"]] = np.eye(5)[joint]
    return weights


def joint_regressor(mesh: Mesh, points_V3: np.ndarray) -> np.ndarray:
    """(5, V): the eyes are the means of their balls; for the other joints, the smallest weights over vertices around them that hit them."""
    regressor = np.zeros((5, len(points_V3)))
    allowed = np.concatenate([mesh.part["skull"], mesh.part["bust"]])
    for joint in range(3):
        near = allowed[
            np.argsort(np.linalg.norm(points_V3[allowed] - JOINTS[joint], axis=1), kind="stable")[:200]
        ]
        system = np.vstack([points_V3[near].T, np.ones(len(near))])
        regressor[joint, near] = np.linalg.pinv(system) @ np.append(JOINTS[joint], 1.0)
    for joint, side in ((3, "left"), (4, "right")):
        ball = mesh.part[f"eye_{side}"]
        regressor[joint, ball] = 1.0 / len(ball)
    return regressor


def _pose_directions(points_V3: np.ndarray, weights_V5: np.ndarray) -> np.ndarray:
    """(36, V*3), metres: an open jaw pulls the cheeks in a little; the other rotations need no corrective."""
    hollow = standin_directions.bump(points_V3, (0.15, -0.08, 0.22), (0.06, 0.07, 0.09))[:, None] * np.array(
        [-1.0, 0, -0.4]
    )
    hollow[:, 0] *= np.tanh(points_V3[:, 0] / 0.05)
    correctives = np.zeros((36, len(points_V3), 3))
    correctives[9 + 7] = 0.04 / UNIT * hollow  # entry (2, 1) of the jaw's rotation is the sine of its opening
    return correctives.reshape(36, -1)


def _landmarks(mesh: Mesh, faces_F3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pupils = [mesh.part["eye_right"][-2], mesh.part["eye_left"][-2]]  # the poles of the eyeballs
    vertices = np.concatenate([standin_surface.landmark_vertices(mesh), pupils])
    chosen = np.array([np.flatnonzero((faces_F3 == vertex).any(axis=1))[0] for vertex in vertices])
    return chosen, (faces_F3[chosen] == vertices[:, None]).astype(np.float64)


def _simplified(mesh: Mesh, points_V3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertex indices (N,) and faces (M, 3) of a coarse closed skull (holes covered) and every other ring of the bust."""
    skull = mesh.part["skull"]
    spread = [int(skull[0])]
    distance = np.full(len(skull), np.inf)
    for _ in range(379):
        distance = np.minimum(distance, np.linalg.norm(points_V3[skull] - points_V3[spread[-1]], axis=1))
        spread.append(int(skull[np.argmax(distance)]))
    coarse = np.sort(spread)
    faces = standin_surface.hull_faces(
        points_V3[coarse] / np.linalg.norm(points_V3[coarse], axis=1, keepdims=True)
    )
    rows, columns = len(standin_surface.BUST), standin_surface.BUST_COLUMNS
    bust = mesh.part["bust"].reshape(rows, columns)[1::2, ::2]
    return np.concatenate([coarse, bust.ravel()]), np.concatenate(
        [faces, len(coarse) + standin_surface.grid_faces(*bust.shape)]
    )


def _neighbours(faces_F3: np.ndarray, points_V3: np.ndarray) -> np.ndarray:
    """(V, 10): the vertex and its nearest connected ones, at most two edges away; padded with V."""
    count = len(points_V3)
    linked: list[set[int]] = [{i} for i in range(count)]
    for a, b, c in faces_F3.tolist():
        for i, j in ((a, b), (b, c), (c, a)):
            linked[i].add(j)
            linked[j].add(i)
    table = np.full((count, 10), count)
    for i in range(count):
        around = np.array(sorted(set().union(*(linked[j] for j in linked[i]))))
        nearest = around[
            np.argsort(np.linalg.norm(points_V3[around] - points_V3[i], axis=1), kind="stable")[:10]
        ]
        table[i, : len(nearest)] = nearest
    return table


@cache
def standin_mesh() -> Mesh:
    """The surface that the stand-in is made of, with its parts and rings by name."""
    return standin_surface.build()


@cache
def standin() -> HeadModel:
    """The stand-in head model (see the head of this module). Deterministic; built once a process in about a second."""
    mesh = standin_mesh()
    points, faces = np.concatenate(mesh.points), np.concatenate(mesh.faces)
    shapes, expressions = (
        standin_directions.shape_directions(mesh, points),
        standin_directions.expression_directions(mesh, points),
    )
    weights = skin_weights(mesh, points)
    landmark_faces, landmark_weights = _landmarks(mesh, faces)
    simple, simple_faces = _simplified(mesh, points)
    eyes = np.concatenate([mesh.part["eye_left"], mesh.part["eye_right"]])
    return HeadModel(
        name="standin",
        template_V3=points / UNIT,
        directions_V3K=np.concatenate([shapes, expressions], axis=2) / UNIT,
        pose_directions=_pose_directions(points, weights),
        joint_regressor=joint_regressor(mesh, points),
        skin_weights=weights,
        parents=np.array([-1, 0, 1, 1, 1]),
        faces_F3=faces.astype(np.int64),
        landmark_faces=landmark_faces,
        landmark_weights=landmark_weights,
        regions={
            "face": np.setdiff1d(np.arange(len(points)), eyes),
            "eyes": np.sort(eyes),
            "left_eye": mesh.part["eye_left"],
            "right_eye": mesh.part["eye_right"],
            "lips": np.sort(np.concatenate([mesh.rings[f"lip{level}"] for level in range(3)])),
            "eyelids": np.sort(
                np.concatenate(
                    [mesh.rings[f"lid{level}_{side}"] for level in range(3) for side in ("left", "right")]
                )
            ),
            "neck": mesh.part["bust"],
        },
        simple_vertices=np.repeat(simple[:, None], 3, axis=1),
        simple_weights=np.tile([1.0, 0.0, 0.0], (len(simple), 1)),
        simple_faces=simple_faces,
        neighbours=_neighbours(faces, points),
    )
