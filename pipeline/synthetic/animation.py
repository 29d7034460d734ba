"""What generated people do.

Portraits are single moments; clips are a second or more of head movement, speech, blinks and moods.
Everything comes from the given generator, so from seeds. Expressions mix FLAME's directions with channels
that FLAME does not have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from pipeline.geometry.camera import INTRINSICS, pack
from pipeline.geometry.curves import smoothstep
from pipeline.geometry.standin_directions import EXPRESSION_NAMES
from pipeline.synthetic.scene import EXTRA, Moment

Weights = Mapping[str, float]  # how much of each named motion
# Radians: a head that looks straight ahead is tilted by this in FLAME's frame (facts 5.4).
REST_PITCH = 0.15
# How much of the head's turn the shoulders do not follow: people who talk turn from the waist, too.
NECK_SHARE = 0.35
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


def photo(rng: np.random.Generator) -> Shot:
    """A random photo: pose about the frontal one, some mood, gaze, framing with room around the head."""
    rotation = _rotation(
        yaw=float(np.clip(rng.normal(0, 0.28), -0.65, 0.65)),
        pitch=float(REST_PITCH + np.clip(rng.normal(0, 0.10), -0.22, 0.22)),
        roll=float(np.clip(rng.normal(0, 0.07), -0.2, 0.2)),
    )
    moods = list(MOODS.values())
    first, second = (moods[number] for number in rng.choice(len(MOODS), 2))
    # Some people are in the middle of a word, few in the middle of a blink.
    speech = SYLLABLES[rng.integers(len(SYLLABLES))] if rng.uniform() < 0.35 else {}
    shut = {"lid close left": 1.0, "lid close right": 1.0} if rng.uniform() < 0.04 else {}
    weights = _blend(
        [
            (rng.uniform(0.2, 1.0), first),
            (rng.uniform(0, 0.3), second),
            (rng.uniform(0.4, 1.0), speech),
            (1.0, shut),
        ]
    )
    weights["sway_side"] = float(rng.normal(0, 0.2))
    weights["sway_depth"] = float(rng.normal(0, 0.2))
    eyes = _gaze(
        rotation,
        yaw=rng.normal(0, 0.14),
        pitch=rng.normal(0, 0.07),
    )
    twist = rng.normal(0, 0.008, 2)
    fine = rng.normal(0, 0.22, 100)
    place = _place(rng)
    zoom = rng.uniform(0.70, 0.88)
    centre = 0.5 + rng.uniform(-0.05, 0.05, 2)
    return Shot(
        moment=_moment(weights, eyes, rotation, twist, fine),
        camera=_camera(rotation, place, zoom, centre),
        rotation=rotation,
    )


def clip(rng: np.random.Generator, frames: int, fps: float) -> list[Shot]:
    """A talking head: `frames` shots, `fps` a second. Head yaw within about 25 degrees, pitch 12, roll 6."""
    seconds = np.arange(frames) / fps

    def drift(slow: float, fast: float) -> np.ndarray:
        return _drift(rng, seconds, slow, fast)

    # All draws come first, in one order, so that what is made of them may change without other people
    # appearing.
    yaw = np.clip(rng.normal(0, 0.10) + 0.22 * drift(0.2, 0.8), -0.44, 0.44)
    nod = np.clip(rng.normal(0, 0.03) + 0.08 * drift(0.25, 1.1), -0.21, 0.21)
    pitch = REST_PITCH + nod
    roll = np.clip(0.045 * drift(0.2, 0.7), -0.11, 0.11)
    moods = _phases(rng, seconds, len(MOODS), length=(0.6, 1.6), change=0.30)
    syllables = _phases(rng, seconds, len(SYLLABLES), length=(0.13, 0.24), change=0.11)
    talking = smoothstep(0.7 + 1.4 * drift(0.3, 0.9) + rng.uniform(0, 0.8))
    look = _saccades(rng, frames, fps)
    blinks = _blinks(rng, seconds)
    fine = np.stack([drift(0.4, 1.6) for _ in range(100)], axis=1) * 0.18
    twist = np.stack([drift(0.5, 2.0) for _ in range(2)], axis=1) * 0.008
    start = _place(rng)
    wandering = np.stack([drift(0.2, 0.6), drift(0.2, 0.8), drift(0.15, 0.5)], axis=1)
    zoom = rng.uniform(0.70, 0.84)
    centre = 0.5 + rng.uniform(-0.04, 0.04, 2)

    places = start + wandering * [0.030, 0.015, 0.04]
    turned = np.stack([yaw, pitch - REST_PITCH], axis=1)
    shots = []
    for k in range(frames):
        weights = _face(moods[k], syllables[k], talking[k], blinks[k], seconds[k])
        # Long hair comes after the head.
        lag = turned[max(0, k - 3)] - turned[k]
        weights["sway_side"] = float(2.5 * lag[0])
        weights["sway_depth"] = float(2.5 * lag[1])
        rotation = _rotation(yaw[k], pitch[k], roll[k])
        moment = _moment(weights, _gaze(rotation, *look[k]), rotation, twist[k], fine[k])
        camera = _camera(rotation, places[k], zoom, centre)
        shots.append(Shot(moment, camera, rotation))
    return shots


def with_face_of(moment: Moment, other: Moment) -> Moment:
    """`moment` with the expression, jaw, eyes and wrinkles of `other`; bust and hair stay where they are."""
    swaying = [EXTRA.index(name) for name in ("sway_side", "sway_depth")]
    extra = other.extra.copy()
    extra[swaying] = moment.extra[swaying]
    return replace(other, extra=extra, body=moment.body)


def _face(
    mood: np.ndarray,
    syllable: np.ndarray,
    talking: float,
    blink: float,
    second: float,
) -> dict[str, float]:
    """What the face of a talking head does: the amounts of all moods and syllables, and a blink."""
    spoken = _blend([(float(syllable[j] * talking), weights) for j, weights in enumerate(SYLLABLES)])
    # A mood shows less while the mouth is busy.
    shown = 1 - 0.35 * talking
    felt = _blend([(float(mood[j] * shown), weights) for j, weights in enumerate(MOODS.values())])
    # Brows go up with the voice.
    stress = float(talking * max(0.0, np.sin(5 * second)))
    upper = {
        "lid close left": float(blink),
        "lid close right": float(blink),
        "brow raise": 0.5 * stress,
    }
    return _blend([(1.0, spoken), (1.0, felt), (1.0, upper)])


def _moment(
    weights: Weights,
    eyes: np.ndarray,
    rotation: np.ndarray,
    twist: np.ndarray,
    fine: np.ndarray,
) -> Moment:
    """A moment of named weights (expression directions, "jaw" in radians, names of EXTRA).

    `fine` are small values for all 100 expression directions, `twist` the other two numbers of the jaw.
    """
    # The named directions come first among the 100.
    expression = fine.copy()
    for number, name in enumerate(EXPRESSION_NAMES):
        expression[number] += weights.get(name, 0.0)
    # Eyelids meet, they do not cross: what the squint already closes is left out.
    squinted = np.clip(weights.get("squint", 0.0), 0, 1)
    most = 1.0 - 0.9 * squinted * 0.24
    for side in ("left", "right"):
        number = EXPRESSION_NAMES.index(f"lid close {side}")
        expression[number] = np.clip(expression[number], -0.3, most)
    opening = np.clip(weights.get("jaw", 0.0), 0, 0.30)
    upright = Rotation.from_rotvec(rotation).inv() * Rotation.from_euler("x", REST_PITCH)
    return Moment(
        expression=expression,
        jaw=np.array([opening, *twist]),
        eyes=np.tile(eyes, 2),
        extra=np.array([weights.get(name, 0.0) for name in EXTRA]),
        body=upright.as_rotvec() * NECK_SHARE,
    )


def _blend(parts: list[tuple[float, Weights]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for amount, weights in parts:
        for name, value in weights.items():
            total[name] = total.get(name, 0.0) + amount * value
    return total


def _place(rng: np.random.Generator) -> np.ndarray:
    """Where the neck joint is in the camera's frame, (3,) world units."""
    across = rng.normal(0, 0.02)
    up = rng.normal(0, 0.02)
    return np.array([across, up, -rng.uniform(4.05, 4.35)])


def _camera(
    rotation: np.ndarray,
    place: np.ndarray,
    zoom: float,
    centre: np.ndarray,
) -> np.ndarray:
    """Camera that sees the neck joint at `place` (camera frame), with the head's rotation."""
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
    up = np.clip(pitch - 0.4 * (pitch_head - REST_PITCH), -0.35, 0.30)
    side = np.clip(yaw - 0.55 * yaw_head, -0.5, 0.5)
    return np.array([up, side, 0.0])


def _drift(
    rng: np.random.Generator,
    seconds: np.ndarray,
    slow: float,
    fast: float,
) -> np.ndarray:
    """A smooth wandering signal with standard deviation about 1; frequencies in hertz."""
    frequency = rng.uniform(slow, fast, 4)
    weight = rng.uniform(0.5, 1.0, 4) / np.sqrt(frequency / slow)
    phase = rng.uniform(0, 2 * np.pi, (4, 1))
    waves = np.sin(2 * np.pi * frequency[:, None] * seconds + phase)
    # The variance of a sine is a half.
    deviation = np.sqrt(0.5 * (weight**2).sum())
    return (weight[:, None] * waves).sum(0) / deviation


def _phases(
    rng: np.random.Generator,
    seconds: np.ndarray,
    table: int,
    length: tuple[float, float],
    change: float,
) -> np.ndarray:
    """Amounts (frames, table) of one entry after the other.

    Each is held for a `length` (shortest, longest); changes take `change` seconds.
    """
    amounts = np.zeros((len(seconds), table))
    time = -rng.uniform(0, length[0])
    current = np.zeros(table)
    while time <= seconds[-1] + length[1]:
        wanted = np.zeros(table)
        wanted[rng.integers(table)] = rng.uniform(0.65, 1.15)
        after = seconds >= time
        done = smoothstep((seconds[after] - time) / change)
        amounts[after] = current + (wanted - current) * done[:, None]
        current = wanted
        time += rng.uniform(*length)
    return amounts


def _saccades(rng: np.random.Generator, frames: int, fps: float) -> np.ndarray:
    """Where the eyes want to look, yaw and pitch in radians (frames, 2): about three jumps a second."""
    looks = rng.normal(0, 1, (frames, 2)) * [0.16, 0.08]
    jumps = np.cumsum(rng.uniform(size=frames) < 3.0 / fps)
    look = np.zeros((frames, 2))
    look[0] = looks[jumps[0] % frames]
    # A frame after a jump sees the eyes on their way.
    for number in range(1, frames):
        target = looks[jumps[number] % frames]
        before = look[number - 1]
        look[number] = before + 0.7 * (target - before)
    return look


def _blinks(rng: np.random.Generator, seconds: np.ndarray) -> np.ndarray:
    """Closing of the lids in [0, 1]: 0.2 seconds every second or three."""
    closed = np.zeros(len(seconds))
    time = rng.uniform(0, 1.2)
    while time < seconds[-1] + 0.2:
        closing = 1.25 * (1 - np.abs(seconds - time) / 0.11)
        closed = np.maximum(closed, np.clip(closing, 0, 1))
        time += rng.uniform(0.7, 3.0)
    return closed
