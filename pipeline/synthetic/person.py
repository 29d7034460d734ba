"""Who a generated person is: a smooth function of 512 numbers.

A fixed orthonormal projection turns z into independent N(0, 1) attributes, squashed smoothly into shape
coefficients, colours, hair, light and background. Nearby z are nearby people, so that a generator can be
trained on it.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.core.seeds import rng
from pipeline.geometry.curves import ramp
from pipeline.geometry.standin_directions import SHAPE_NAMES, SHAPES

Z = 512
PHASES = 8  # of the noise on skin, hair and background
TRAITS = (
    "skin",
    "warmth",
    "hair",
    "red",
    "grey",
    "length",
    "volume",
    "fringe",
    "parting",
    "wave",
    "brow",
    "brow_dark",
    "iris",
    "lips",
    "blush",
    "age",
    "shirt_hue",
    "shirt_light",
    "neckline",
    "light_turn",
    "light_height",
    "contrast",
    "beard",
    "back_hue",
    "back_light",
    "back_turn",
    "freckles",
)

# 8-bit sRGB, from dark to light hair, from light to dark skin, from brown to blue eyes.
SKIN = [
    (238, 205, 186),
    (226, 186, 160),
    (210, 163, 130),
    (186, 133, 98),
    (143, 95, 66),
    (94, 60, 44),
]
HAIR = [
    (24, 20, 19),
    (50, 35, 27),
    (92, 60, 38),
    (140, 96, 58),
    (196, 158, 104),
    (226, 202, 154),
]
IRIS = [
    (62, 38, 22),
    (98, 64, 36),
    (112, 104, 58),
    (84, 122, 84),
    (86, 128, 158),
    (120, 148, 170),
]
GINGER = (150, 66, 30)
GREY = (168, 166, 164)


@dataclass(frozen=True)
class Person:
    """A person. Colours are linear light in [0, 1]; traits named as in TRAITS are in [0, 1]."""

    shape: np.ndarray  # (300,) FLAME shape coefficients
    trait: dict[str, float]
    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    lips: np.ndarray
    brow: np.ndarray
    shirt: np.ndarray
    background: np.ndarray  # (4, 3): upper left, upper right, lower left, lower right
    light: np.ndarray  # direction towards the key light, in the room (camera) frame
    phase: np.ndarray  # (8,) of the noise on skin, hair and background, radians


@cache
def _projection() -> np.ndarray:
    """(512, 400) with orthonormal columns."""
    # One for all seeds: the same z is the same person in all data sets.
    generator = rng(0, "person projection")
    return np.linalg.qr(generator.normal(size=(Z, 400)))[0]


def linear(rgb: np.ndarray | tuple) -> np.ndarray:
    """8-bit sRGB to linear light."""
    signal = np.asarray(rgb, np.float64) / 255.0
    return signal**2.2


def _palette(colours: list[tuple], place: float) -> np.ndarray:
    """Colour at `place` in [0, 1] along a list of colours."""
    # Mixed in linear light, as paints of light are.
    at = place * (len(colours) - 1)
    channels = linear(colours).T
    numbers = np.arange(len(colours))
    return np.array([np.interp(at, numbers, channel) for channel in channels])


def _hue(turn: float, saturation: float, value: float) -> np.ndarray:
    """A colour on a smooth hue circle (turn in revolutions), sRGB in [0, 1], as linear light."""
    thirds = np.array([0, 1 / 3, 2 / 3])
    angles = 2 * np.pi * (turn - thirds)
    wheel = 0.5 + 0.5 * np.cos(angles)
    tint = 1 - saturation + saturation * wheel
    colour = np.clip(value * tint, 0, 1)
    return colour**2.2


def person(z_512: np.ndarray) -> Person:
    """The person of a latent vector (512,), meant to be drawn from N(0, 1)."""
    raw = np.asarray(z_512, np.float64) @ _projection()
    # 1.7 x is close to what takes N(0, 1) to a uniform number.
    uniform = [float(1 / (1 + np.exp(-1.7 * number))) for number in raw[: len(TRAITS)]]
    trait = dict(zip(TRAITS, uniform, strict=True))
    rest = raw[len(TRAITS) :]
    skin = _skin(trait)
    hair = _hair(trait)
    # Brows are lighter than hair, as skin shows between them.
    dark = 0.35 + 0.35 * (1 - trait["brow_dark"])
    return Person(
        shape=_shape(rest),
        trait=trait,
        skin=skin,
        hair=hair,
        iris=_iris(trait),
        lips=skin * _lips(trait),
        brow=dark * hair + 0.04 * skin,
        shirt=_shirt(trait),
        background=_background(trait),
        light=_light(trait),
        phase=2.0 * rest[SHAPES : SHAPES + PHASES],
    )


def _shape(rest: np.ndarray) -> np.ndarray:
    """Named directions are bounded, as their ends look like no person; the random ones are small anyway."""
    shape = np.zeros(SHAPES)
    named = len(SHAPE_NAMES)
    shape[:named] = 1.7 * np.tanh(0.62 * rest[:named])
    shape[named:] = 0.8 * rest[named:SHAPES]
    return shape


def _skin(trait: dict[str, float]) -> np.ndarray:
    warmth = 0.08 * (trait["warmth"] - 0.5)
    tint = warmth * np.array([1.0, 0.0, -1.6])
    return _palette(SKIN, trait["skin"]) * (1 + tint)


def _hair(trait: dict[str, float]) -> np.ndarray:
    # Dark skin goes with dark hair; light skin with any, few of them red, and some people are grey.
    lightest = 1.1 - 0.75 * trait["skin"]
    place = trait["hair"] ** 1.6 * lightest
    hair = _palette(HAIR, np.clip(place, 0, 1))
    red = ramp(trait["red"], start=0.72, width=0.2)
    fair = 1 - trait["skin"]
    ginger = 0.7 * (red * fair)
    hair = (1 - ginger) * hair + ginger * linear(GINGER)
    grey = 0.8 * ramp(trait["grey"], start=0.8, width=0.18)
    return (1 - grey) * hair + grey * linear(GREY)


def _iris(trait: dict[str, float]) -> np.ndarray:
    # Dark skin goes with brown eyes.
    lightest = 1.25 - 0.9 * trait["skin"]
    place = trait["iris"] * lightest
    return _palette(IRIS, np.clip(place, 0, 1))


def _lips(trait: dict[str, float]) -> np.ndarray:
    """What takes the colour of the skin to that of the lips, from pale to painted."""
    painted = trait["lips"]
    pale = np.array([0.80, 0.50, 0.50])
    red = np.array([0.86, 0.26, 0.30])
    return pale * (1 - painted) + red * painted


def _shirt(trait: dict[str, float]) -> np.ndarray:
    # Very light and very dark shirts have the strongest colours.
    light = trait["shirt_light"]
    saturation = 0.35 + 0.5 * abs(2 * light - 1)
    return _hue(1.3 * trait["shirt_hue"], saturation, 0.18 + 0.72 * light)


def _background(trait: dict[str, float]) -> np.ndarray:
    turn = 1.4 * trait["back_hue"]
    light = 0.25 + 0.65 * trait["back_light"]
    other = 0.25 * (trait["back_turn"] - 0.5)
    # Rooms are lit from above, and no wall has one colour.
    corners = [
        (turn, light),
        (turn + 0.1, 0.8 * light),
        (turn - 0.12, 0.75 * light),
        (turn + other, 0.6 * light),
    ]
    return np.array([_hue(hue, 0.45, value) for hue, value in corners])


def _light(trait: dict[str, float]) -> np.ndarray:
    azimuth = 1.9 * (trait["light_turn"] - 0.5)
    height = 0.25 + 0.75 * trait["light_height"]
    across = np.cos(height)
    x = across * np.sin(azimuth)
    z = across * np.cos(azimuth)
    return np.array([x, np.sin(height), z])
