"""What generated people do.

Portraits are single moments; clips are a second or more of head movement, speech, blinks and moods.
Everything comes from the given generator, so from seeds. Expressions mix FLAME's directions with channels
that FLAME does not have.
"""

from collections.abc import Iterable, Mapping
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
# How much of the head's turn the shoulders do not follow: people turn from the waist, too.
NECK_SHARE = 0.35
MOODS: dict[str, dict[str, float]] = {
    "calm": {},
    "smile": {
        "smile": 1.0,
        "cheek raise": 0.4,
        "squint": 0.3,
        "dimples": 0.6,
    },
    "laugh": {
        "smile": 1.25,
        "cheek raise": 0.8,
        "squint": 0.7,
        "upper lip raise": 0.5,
        "jaw": 0.11,
        "dimples": 0.8,
        "nostrils": 0.6,
    },
    "surprise": {
        "brow raise": 1.3,
        "lid wide": 1.0,
        "jaw": 0.17,
        "pucker": 0.4,
        "wrinkles": 1.0,
    },
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
    "doubt": {
        "brow raise left": 1.3,
        "mouth right": 0.6,
        "asymmetry": -0.8,
        "squint": 0.3,
        "wrinkles": 0.4,
    },
    "smirk": {
        "smile left": 1.1,
        "asymmetry": 0.8,
        "brow raise right": 0.7,
        "dimples": 0.4,
    },
    "puff": {
        "puff_left": 1.0,
        "puff_right": 1.0,
        "pucker": 0.5,
        "brow raise": 0.4,
    },
    "puff aside": {
        "puff_right": 1.2,
        "mouth right": 0.5,
        "lips inwards": 0.4,
    },
    "kiss": {"pucker": 1.3, "squint": 0.2},
    "bite": {
        "lip_bite": 1.0,
        "inner brow raise": 0.5,
        "upper lip raise": 0.3,
    },
    "wink": {
        "lid close left": 1.0,
        "smile left": 0.8,
        "cheek raise": 0.3,
    },
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
    yaw = _bounded(rng.normal(0, 0.28), 0.65)
    nod = _bounded(rng.normal(0, 0.10), 0.22)
    roll = _bounded(rng.normal(0, 0.07), 0.2)
    rotation = _rotation(yaw, REST_PITCH + nod, roll)
    weights = _photo_face(rng)
    weights["sway_side"] = float(rng.normal(0, 0.2))
    weights["sway_depth"] = float(rng.normal(0, 0.2))
    look = rng.normal(0, [0.14, 0.07])
    eyes = _gaze(rotation, *look)
    twist = rng.normal(0, 0.008, 2)
    fine = rng.normal(0, 0.22, 100)
    place = _place(rng)
    zoom = rng.uniform(0.70, 0.88)
    centre = 0.5 + rng.uniform(-0.05, 0.05, 2)
    moment = _moment(weights, eyes, rotation, twist, fine)
    camera = _camera(rotation, place, zoom, centre)
    return Shot(moment, camera, rotation)


def _photo_face(rng: np.random.Generator) -> dict[str, float]:
    """Much of one mood and little of another."""
    moods = list(MOODS.values())
    first, second = rng.choice(len(MOODS), 2)
    # Some people are in the middle of a word, few in the middle of a blink.
    speech: Weights = {}
    if rng.uniform() < 0.35:
        speech = SYLLABLES[rng.integers(len(SYLLABLES))]
    shut: Weights = {}
    if rng.uniform() < 0.04:
        shut = {"lid close left": 1.0, "lid close right": 1.0}
    parts = [
        (rng.uniform(0.2, 1.0), moods[first]),
        (rng.uniform(0, 0.3), moods[second]),
        (rng.uniform(0.4, 1.0), speech),
        (1.0, shut),
    ]
    return _blend(parts)


@dataclass(frozen=True)
class _Course:
    """What is to happen in a clip: arrays with a row a frame, and one framing."""

    second: np.ndarray  # (frames,)
    angles: np.ndarray  # (frames, 3) yaw, pitch and roll of the head, radians
    mood: np.ndarray  # (frames, len(MOODS)) amounts
    syllable: np.ndarray  # (frames, len(SYLLABLES)) amounts
    talking: np.ndarray  # (frames,) in [0, 1]
    look: np.ndarray  # (frames, 2) yaw and pitch of the eyes, radians
    blink: np.ndarray  # (frames,) closing of the lids in [0, 1]
    fine: np.ndarray  # (frames, 100) expression
    twist: np.ndarray  # (frames, 2) of the jaw
    place: np.ndarray  # (frames, 3) of the neck joint, camera frame
    zoom: float
    centre: np.ndarray  # (2,) principal point


def clip(
    rng: np.random.Generator,
    frames: int,
    fps: float,
    neck_share: float = NECK_SHARE,
) -> list[Shot]:
    """A talking head: `frames` shots, `fps` a second. Head yaw within about 25 degrees, pitch 12, roll 6.

    Shoulders do not follow `neck_share` of the head's turn; with 1 they stay.
    """
    course = _course(rng, frames, fps)
    straight = [0.0, REST_PITCH]
    turned = course.angles[:, :2] - straight
    # Long hair comes after the head: it is where the head was three frames before.
    before = np.maximum(np.arange(frames) - 3, 0)
    sway = 2.5 * (turned[before] - turned)
    return [_shot(course, frame, sway[frame], neck_share) for frame in range(frames)]


def _course(rng: np.random.Generator, frames: int, fps: float) -> _Course:
    """Draw a clip."""
    seconds = np.arange(frames) / fps

    def drift(slow: float, fast: float) -> np.ndarray:
        return _drift(rng, seconds, slow, fast)

    def drifts(bands: list[tuple[float, float]]) -> np.ndarray:
        return np.stack([drift(slow, fast) for slow, fast in bands], axis=1)

    # All draws come in one order, so that what is made of them may change without other people appearing.
    yaw = rng.normal(0, 0.10) + 0.22 * drift(0.2, 0.8)
    nod = rng.normal(0, 0.03) + 0.08 * drift(0.25, 1.1)
    roll = 0.045 * drift(0.2, 0.7)
    angles = [
        _bounded(yaw, 0.44),
        REST_PITCH + _bounded(nod, 0.21),
        _bounded(roll, 0.11),
    ]
    mood = _phases(rng, seconds, len(MOODS), length=(0.6, 1.6), change=0.30)
    syllable = _phases(rng, seconds, len(SYLLABLES), length=(0.13, 0.24), change=0.11)
    chatter = 0.7 + 1.4 * drift(0.3, 0.9)
    talking = smoothstep(chatter + rng.uniform(0, 0.8))
    look = _saccades(rng, frames, fps)
    blink = _blinks(rng, seconds)
    fine = 0.18 * drifts([(0.4, 1.6)] * 100)
    twist = 0.008 * drifts([(0.5, 2.0)] * 2)
    start = _place(rng)
    wandering = drifts([(0.2, 0.6), (0.2, 0.8), (0.15, 0.5)])
    return _Course(
        second=seconds,
        angles=np.stack(angles, axis=1),
        mood=mood,
        syllable=syllable,
        talking=talking,
        look=look,
        blink=blink,
        fine=fine,
        twist=twist,
        place=start + wandering * [0.030, 0.015, 0.04],
        zoom=rng.uniform(0.70, 0.84),
        centre=0.5 + rng.uniform(-0.04, 0.04, 2),
    )


def _shot(
    course: _Course,
    frame: int,
    sway: np.ndarray,
    neck_share: float,
) -> Shot:
    """One frame of a clip; `sway` says how far hair is behind, (2,) aside and in depth."""
    rotation = _rotation(*course.angles[frame])
    weights = _clip_face(course, frame)
    weights["sway_side"], weights["sway_depth"] = sway.tolist()
    eyes = _gaze(rotation, *course.look[frame])
    moment = _moment(
        weights,
        eyes,
        rotation,
        course.twist[frame],
        course.fine[frame],
        neck_share,
    )
    camera = _camera(
        rotation,
        course.place[frame],
        course.zoom,
        course.centre,
    )
    return Shot(moment, camera, rotation)


def _clip_face(course: _Course, frame: int) -> dict[str, float]:
    """What the face of a talking head does: the amounts of all moods and syllables, and a blink."""
    talking = course.talking[frame]
    said = course.syllable[frame] * talking
    # A mood shows less while the mouth is busy.
    felt = course.mood[frame] * (1 - 0.35 * talking)
    blink = float(course.blink[frame])
    # Brows go up with the voice.
    beat = np.sin(5 * course.second[frame])
    stress = float(talking * max(0.0, beat))
    upper = {
        "lid close left": blink,
        "lid close right": blink,
        "brow raise": 0.5 * stress,
    }
    parts = [
        (1.0, _blend(zip(said.tolist(), SYLLABLES, strict=True))),
        (1.0, _blend(zip(felt.tolist(), MOODS.values(), strict=True))),
        (1.0, upper),
    ]
    return _blend(parts)


def with_face_of(moment: Moment, other: Moment) -> Moment:
    """`moment` with the expression, jaw, eyes and wrinkles of `other`; bust and hair stay where they are."""
    # They follow the head, whose movement is not that of the other moment.
    swaying = [EXTRA.index(name) for name in ("sway_side", "sway_depth")]
    extra = other.extra.copy()
    extra[swaying] = moment.extra[swaying]
    return replace(other, extra=extra, body=moment.body)


def _moment(
    weights: Weights,
    eyes: np.ndarray,
    rotation: np.ndarray,
    twist: np.ndarray,
    fine: np.ndarray,
    neck_share: float = NECK_SHARE,
) -> Moment:
    """A moment of named weights (expression directions, "jaw" in radians, names of EXTRA).

    `fine` are small values for all 100 expression directions, `twist` the other two numbers of the jaw.
    """
    # The named directions come first among the 100.
    expression = fine.copy()
    for number, name in enumerate(EXPRESSION_NAMES):
        expression[number] += weights.get(name, 0.0)
    # Eyelids meet, they do not cross: what the squint already closes is left out.
    squint = weights.get("squint", 0.0)
    squinted = np.clip(squint, 0, 1)
    most = 1.0 - 0.9 * squinted * 0.24
    for side in ("left", "right"):
        number = EXPRESSION_NAMES.index(f"lid close {side}")
        expression[number] = np.clip(expression[number], -0.3, most)
    jaw = weights.get("jaw", 0.0)
    opening = np.clip(jaw, 0, 0.30)
    extra = [weights.get(name, 0.0) for name in EXTRA]
    # The bust in the head's frame, if the neck alone turned the head away from straight ahead.
    straight = Rotation.from_euler("x", REST_PITCH)
    upright = Rotation.from_rotvec(rotation).inv() * straight
    return Moment(
        expression=expression,
        jaw=np.array([opening, *twist]),
        eyes=np.tile(eyes, 2),
        extra=np.array(extra),
        body=upright.as_rotvec() * neck_share,
    )


def _blend(parts: Iterable[tuple[float, Weights]]) -> dict[str, float]:
    """The sum of the motions, each as much as its amount says."""
    total: dict[str, float] = {}
    for amount, weights in parts:
        for name, value in weights.items():
            total[name] = total.get(name, 0.0) + amount * value
    return total


def _place(rng: np.random.Generator) -> np.ndarray:
    """Where the neck joint is in the camera's frame, (3,) world units."""
    across = rng.normal(0, 0.02)
    up = rng.normal(0, 0.02)
    away = rng.uniform(4.05, 4.35)
    return np.array([across, up, -away])


def _camera(
    rotation: np.ndarray,
    place: np.ndarray,
    zoom: float,
    centre: np.ndarray,
) -> np.ndarray:
    """Camera that sees the neck joint at `place` (camera frame), with the head's rotation."""
    turn = Rotation.from_rotvec(rotation).as_matrix()
    # The head stays and the camera goes around it: a point p is at R p + place for the camera.
    cam2world = np.eye(4)
    cam2world[:3, :3] = turn.T
    cam2world[:3, 3] = -turn.T @ place
    intrinsics = INTRINSICS.astype(np.float64).copy()
    intrinsics[0, 0] *= zoom
    intrinsics[1, 1] *= zoom
    intrinsics[:2, 2] = centre
    return pack(cam2world, intrinsics)


def _bounded(angle: np.ndarray | float, most: float) -> np.ndarray:
    return np.clip(angle, -most, most)


def _rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    turn = Rotation.from_euler("YXZ", [yaw, pitch, roll])
    return turn.as_rotvec()


def _gaze(head: np.ndarray, yaw: float, pitch: float) -> np.ndarray:
    """Rotation of the eyes: where the person looks, partly making up for the turn of the head."""
    turn = Rotation.from_rotvec(head)
    yaw_head, pitch_head, _ = turn.as_euler("YXZ")
    nod = pitch_head - REST_PITCH
    up = np.clip(pitch - 0.4 * nod, -0.35, 0.30)
    side = _bounded(yaw - 0.55 * yaw_head, 0.5)
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
    turns = 2 * np.pi * frequency[:, None] * seconds
    waves = weight[:, None] * np.sin(turns + phase)
    # The variance of a sine is a half.
    variance = 0.5 * (weight**2).sum()
    return waves.sum(0) / np.sqrt(variance)


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
        amount = rng.uniform(0.65, 1.15)
        entry = rng.integers(table)
        wanted = np.zeros(table)
        wanted[entry] = amount
        after = seconds >= time
        since = seconds[after] - time
        done = smoothstep(since / change)
        amounts[after] = current + (wanted - current) * done[:, None]
        current = wanted
        time += rng.uniform(*length)
    return amounts


def _saccades(rng: np.random.Generator, frames: int, fps: float) -> np.ndarray:
    """Where the eyes want to look, yaw and pitch in radians (frames, 2): about three jumps a second."""
    looks = rng.normal(0, 1, (frames, 2)) * [0.16, 0.08]
    jumped = rng.uniform(size=frames) < 3.0 / fps
    jumps = np.cumsum(jumped)
    targets = looks[jumps % frames]
    look = np.zeros((frames, 2))
    look[0] = targets[0]
    # A frame after a jump sees the eyes on their way.
    for number in range(1, frames):
        before = look[number - 1]
        way = targets[number] - before
        look[number] = before + 0.7 * way
    return look


def _blinks(rng: np.random.Generator, seconds: np.ndarray) -> np.ndarray:
    """Closing of the lids in [0, 1]: 0.2 seconds every second or three."""
    closed = np.zeros(len(seconds))
    time = rng.uniform(0, 1.2)
    while time < seconds[-1] + 0.2:
        # Lids stay shut for a moment: the peak of the triangle is cut off.
        away = np.abs(seconds - time) / 0.11
        closing = np.clip(1.25 * (1 - away), 0, 1)
        closed = np.maximum(closed, closing)
        time += rng.uniform(0.7, 3.0)
    return closed
