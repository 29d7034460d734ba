"""What generated people do: single moments for portraits, and a second or more of head movement, speech, blinks and moods for clips.

Everything comes from the given generator, so from counters. Expressions mix FLAME's directions with channels that FLAME does not have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from pipeline.geometry.camera import INTRINSICS, pack
from pipeline.geometry.standin_directions import EXPRESSION_NAMES
from pipeline.synthetic.scene import EXTRA, Moment

REST_PITCH = 0.15  # radians; a head that looks straight ahead is tilted by this in FLAME's frame (facts 5.4)
NECK_SHARE = (
    0.35  # how much of the head's turn the shoulders do not follow; people who talk turn from the waist, too
)
MOODS: dict[str, dict[str, float]] = {
    "calm": {},
    "smile": {"smile": 1.0, "cheek raise": 0.4, "squint": 0.3, "dimples": 0.6},
    "laugh": {
        "smile": 1.25,
        "cheek raise": 0.8,
        "squint": 0.7,
        "upper lip raise": 0.5,
        "jaw": 0.11,
        "dimples": 0.8,
        "nostrils": 0.6,
    },
    "surprise": {"brow raise": 1.3, "lid wide": 1.0, "jaw": 0.17, "pucker": 0.4, "wrinkles": 1.0},
    "anger": {
        "brow furrow": 1.4,
        "squint": 0.5,
        "lips inwards": 0.5,
        "frown": 0.5,
        "frown_lines": 1.0,
        "nostrils": 1.0,
    },
    "sadness": {
        "inner brow raise": 1.2,
        "frown": 1.2,
        "chin raise": 0.6,
        "lid close left": 0.25,
        "lid close right": 0.25,
    },
    "disgust": {
        "nose wrinkle": 1.2,
        "upper lip raise": 1.0,
        "brow furrow": 0.6,
        "squint": 0.5,
        "asymmetry": 0.5,
    },
    "doubt": {"brow raise left": 1.3, "mouth right": 0.6, "asymmetry": -0.8, "squint": 0.3, "wrinkles": 0.4},
    "smirk": {"smile left": 1.1, "asymmetry": 0.8, "brow raise right": 0.7, "dimples": 0.4},
    "puff": {"puff_left": 1.0, "puff_right": 1.0, "pucker": 0.5, "brow raise": 0.4},
    "puff aside": {"puff_right": 1.2, "mouth right": 0.5, "lips inwards": 0.4},
    "kiss": {"pucker": 1.3, "squint": 0.2},
    "bite": {"lip_bite": 1.0, "inner brow raise": 0.5, "upper lip raise": 0.3},
    "wink": {"lid close left": 1.0, "smile left": 0.8, "cheek raise": 0.3},
}
SYLLABLES: tuple[dict[str, float], ...] = (
    {"jaw": 0.25, "lower lip down": 0.4},
    {"jaw": 0.13, "mouth stretch": 1.0, "upper lip raise": 0.4},
    {"jaw": 0.17, "pucker": 0.9},
    {"jaw": 0.06, "pucker": 1.3},
    {"jaw": 0.11, "lower lip down": 0.9},
    {"lips inwards": 1.0},
)


@dataclass(frozen=True)
class Shot:
    """One photo or frame: what the face does, and the camera, which holds the whole rotation of the head."""

    moment: Moment
    camera: np.ndarray  # (25,) in the head's own frame, with the raw image's intrinsics
    rotation: np.ndarray  # (3,) rotation vector of world-to-camera = head rotation (facts 5.4)


def _moment(
    weights: Mapping[str, float], eyes: np.ndarray, rotation: np.ndarray, twist: np.ndarray, fine: np.ndarray
) -> Moment:
    """A moment from named weights (expression directions, "jaw" in radians, names of EXTRA) and small values for all 100 directions."""
    expression = fine.copy()
    for number, name in enumerate(EXPRESSION_NAMES):
        expression[number] += weights.get(name, 0.0)
    for side in ("left", "right"):  # eyelids meet, they do not cross
        number = EXPRESSION_NAMES.index(f"lid close {side}")
        expression[number] = np.clip(
            expression[number], -0.3, 1.0 - 0.9 * np.clip(weights.get("squint", 0.0), 0, 1) * 0.24
        )
    turn = Rotation.from_rotvec(rotation)
    body = (turn.inv() * Rotation.from_euler("x", REST_PITCH)).as_rotvec() * NECK_SHARE
    return Moment(
        expression=expression,
        jaw=np.array([np.clip(weights.get("jaw", 0.0), 0, 0.30), *twist]),
        eyes=np.tile(eyes, 2),
        extra=np.array([weights.get(name, 0.0) for name in EXTRA]),
        body=body,
    )


def with_face_of(moment: Moment, other: Moment) -> Moment:
    """`moment` with the expression, jaw, eyes and wrinkles of `other`; bust and hair stay where they are."""
    swaying = [EXTRA.index(name) for name in ("sway_side", "sway_depth")]
    extra = other.extra.copy()
    extra[swaying] = moment.extra[swaying]
    return replace(other, extra=extra, body=moment.body)


def _camera(rotation: np.ndarray, place: np.ndarray, zoom: float, centre: np.ndarray) -> np.ndarray:
    """Camera whose world-to-camera rotation is the head's and which sees the neck joint at `place` (camera frame)."""
    turn = Rotation.from_rotvec(rotation).as_matrix()
    cam2world = np.eye(4)
    cam2world[:3, :3] = turn.T
    cam2world[:3, 3] = -turn.T @ place
    intrinsics = INTRINSICS.astype(np.float64).copy()
    intrinsics[0, 0] *= zoom
    intrinsics[1, 1] *= zoom
    intrinsics[:2, 2] = centre
    return pack(cam2world, intrinsics)


def _rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    return Rotation.from_euler("YXZ", [yaw, pitch, roll]).as_rotvec()


def _gaze(head: np.ndarray, yaw: float, pitch: float) -> np.ndarray:
    """Rotation of the eyes: where the person looks, partly making up for the turn of the head."""
    yaw_head, pitch_head, _ = Rotation.from_rotvec(head).as_euler("YXZ")
    return np.array(
        [
            np.clip(pitch - 0.4 * (pitch_head - REST_PITCH), -0.35, 0.30),
            np.clip(yaw - 0.55 * yaw_head, -0.5, 0.5),
            0.0,
        ]
    )


def _blend(parts: list[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for amount, weights in parts:
        for name, value in weights.items():
            total[name] = total.get(name, 0.0) + amount * value
    return total


def photo(rng: np.random.Generator) -> Shot:
    """A random photo: pose about the frontal one, some mood, gaze, framing with room around the head."""
    rotation = _rotation(
        yaw=float(np.clip(rng.normal(0, 0.28), -0.65, 0.65)),
        pitch=float(REST_PITCH + np.clip(rng.normal(0, 0.10), -0.22, 0.22)),
        roll=float(np.clip(rng.normal(0, 0.07), -0.2, 0.2)),
    )
    first, second = (list(MOODS.values())[number] for number in rng.choice(len(MOODS), 2))
    speech = SYLLABLES[rng.integers(len(SYLLABLES))] if rng.uniform() < 0.35 else {}
    shut = {"lid close left": 1.0, "lid close right": 1.0} if rng.uniform() < 0.04 else {}
    parts = [
        (rng.uniform(0.2, 1.0), first),
        (rng.uniform(0, 0.3), second),
        (rng.uniform(0.4, 1.0), speech),
        (1.0, shut),
    ]
    weights = _blend(parts)
    weights |= {"sway_side": float(rng.normal(0, 0.2)), "sway_depth": float(rng.normal(0, 0.2))}
    eyes = _gaze(rotation, rng.normal(0, 0.14), rng.normal(0, 0.07))
    moment = _moment(weights, eyes, rotation, rng.normal(0, 0.008, 2), rng.normal(0, 0.22, 100))
    place = np.array([rng.normal(0, 0.02), rng.normal(0, 0.02), -rng.uniform(4.05, 4.35)])
    return Shot(
        moment, _camera(rotation, place, rng.uniform(0.70, 0.88), 0.5 + rng.uniform(-0.05, 0.05, 2)), rotation
    )


def _drift(rng: np.random.Generator, seconds: np.ndarray, slow: float, fast: float) -> np.ndarray:
    """A smooth wandering signal with standard deviation about 1; frequencies in hertz."""
    frequency = rng.uniform(slow, fast, 4)
    weight = rng.uniform(0.5, 1.0, 4) / np.sqrt(frequency / slow)
    signal = np.sin(2 * np.pi * frequency[:, None] * seconds + rng.uniform(0, 2 * np.pi, (4, 1)))
    return (weight[:, None] * signal).sum(0) / np.sqrt(0.5 * (weight**2).sum())


def _ease(x: np.ndarray | float) -> np.ndarray | float:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _phases(
    rng: np.random.Generator, seconds: np.ndarray, table: int, length: tuple[float, float], change: float
) -> np.ndarray:
    """Amounts (frames, table) of one entry after the other, each held for a while, with eased changes of `change` seconds."""
    amounts = np.zeros((len(seconds), table))
    time, current = -rng.uniform(0, length[0]), np.zeros(table)
    while time <= seconds[-1] + length[1]:
        wanted = np.zeros(table)
        wanted[rng.integers(table)] = rng.uniform(0.65, 1.15)
        after = seconds >= time
        amounts[after] = (
            current + (wanted - current) * np.asarray(_ease((seconds[after] - time) / change))[:, None]
        )
        current, time = wanted, time + rng.uniform(*length)
    return amounts


def _blinks(rng: np.random.Generator, seconds: np.ndarray) -> np.ndarray:
    """Closing of the lids in [0, 1]: 0.2 seconds every second or three."""
    closed, time = np.zeros(len(seconds)), rng.uniform(0, 1.2)
    while time < seconds[-1] + 0.2:
        closed = np.maximum(closed, np.clip(1.25 * (1 - np.abs(seconds - time) / 0.11), 0, 1))
        time += rng.uniform(0.7, 3.0)
    return closed


def clip(rng: np.random.Generator, frames: int, fps: float) -> list[Shot]:
    """A talking head: `frames` shots, `fps` a second. Head yaw within about 25 degrees, pitch 12, roll 6."""
    seconds = np.arange(frames) / fps
    yaw = np.clip(rng.normal(0, 0.10) + 0.22 * _drift(rng, seconds, 0.2, 0.8), -0.44, 0.44)
    pitch = REST_PITCH + np.clip(rng.normal(0, 0.03) + 0.08 * _drift(rng, seconds, 0.25, 1.1), -0.21, 0.21)
    roll = np.clip(0.045 * _drift(rng, seconds, 0.2, 0.7), -0.11, 0.11)
    moods = _phases(rng, seconds, len(MOODS), (0.6, 1.6), 0.30)
    syllables = _phases(rng, seconds, len(SYLLABLES), (0.13, 0.24), 0.11)
    talking = _ease(0.7 + 1.4 * _drift(rng, seconds, 0.3, 0.9) + rng.uniform(0, 0.8))
    looks = rng.normal(0, 1, (frames, 2)) * [0.16, 0.08]
    look = np.zeros((frames, 2))
    held = np.cumsum(rng.uniform(size=frames) < 3.0 / fps)  # about three saccades a second
    for number in range(frames):
        target = looks[held[number] % frames]
        look[number] = target if number == 0 else look[number - 1] + 0.7 * (target - look[number - 1])
    blinks, fine = (
        _blinks(rng, seconds),
        np.stack([_drift(rng, seconds, 0.4, 1.6) for _ in range(100)], 1) * 0.18,
    )
    twist, sway = (
        np.stack([_drift(rng, seconds, 0.5, 2.0) for _ in range(2)], 1) * 0.008,
        np.stack([yaw, pitch - REST_PITCH], 1),
    )
    place = np.array([rng.normal(0, 0.02), rng.normal(0, 0.02), -rng.uniform(4.05, 4.35)])
    step = np.stack(
        [_drift(rng, seconds, 0.2, 0.6), _drift(rng, seconds, 0.2, 0.8), _drift(rng, seconds, 0.15, 0.5)], 1
    ) * [
        0.030,
        0.015,
        0.04,
    ]
    zoom, centre = rng.uniform(0.70, 0.84), 0.5 + rng.uniform(-0.04, 0.04, 2)
    shots = []
    for k in range(frames):
        spoken = _blend([(float(syllables[k, j] * talking[k]), SYLLABLES[j]) for j in range(len(SYLLABLES))])
        mood = _blend(
            [
                (float(moods[k, j] * (1 - 0.35 * talking[k])), weights)
                for j, weights in enumerate(MOODS.values())
            ]
        )
        stress = float(talking[k] * max(0.0, np.sin(5 * seconds[k])))  # brows go up with the voice
        upper = {
            "lid close left": float(blinks[k]),
            "lid close right": float(blinks[k]),
            "brow raise": 0.5 * stress,
        }
        weights = _blend([(1.0, spoken), (1.0, mood), (1.0, upper)])
        lag = sway[max(0, k - 3)] - sway[k]  # long hair comes after the head
        weights |= {"sway_side": float(2.5 * lag[0]), "sway_depth": float(2.5 * lag[1])}
        rotation = _rotation(yaw[k], pitch[k], roll[k])
        moment = _moment(weights, _gaze(rotation, *look[k]), rotation, twist[k], fine[k])
        shots.append(Shot(moment, _camera(rotation, place + step[k], zoom, centre), rotation))
    return shots
