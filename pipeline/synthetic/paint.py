"""Colours of a generated person: skin, lips, brows, lids, eyes, teeth, hair, shirt and background, computed at visible pixels only.

Everything is a function of paint coordinates (the template's, so that paint sticks to the moving skin) and of the person. Linear light.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.synthetic import hair
from pipeline.synthetic.person import Person, linear
from pipeline.synthetic.scene import Moment, eye_offset

Array = np.ndarray
_TURNS = np.linspace(-np.pi, np.pi, 121)  # around the crown
BROW_X = np.array([0.0, 0.030, 0.039, 0.0715, 0.1045, 0.1365, 0.164, 0.180], np.float32)
BROW_Y = np.array([0.135, 0.138, 0.1425, 0.1515, 0.1535, 0.1455, 0.1185, 0.10], np.float32)
BEARD_X = np.array([0.0, 0.05, 0.09, 0.13, 0.18, 0.215, 0.25], np.float32)
BEARD_Y = np.array([-0.042, -0.046, -0.066, -0.088, -0.05, 0.03, 0.05], np.float32)


@dataclass
class Surfel:
    """Visible points of one material: coordinates for paint, unit normals in the head's frame, lip and lid coordinates."""

    paint: Array  # (N, 3) float32
    normal: Array  # (N, 3)
    lip: Array  # (N,)
    lid: Array
    pixel: float  # size of one in world units


@dataclass
class Coat:
    """Albedo (N, 3), occlusion (N,) in [0, 1], strength and sharpness of the highlight."""

    albedo: Array
    occlusion: Array
    gloss: Array | float
    sharpness: float


def smooth(x: Array, low: float, high: float) -> Array:
    """0 below `low`, 1 above `high` (or the other way round), smooth between."""
    t = np.clip((x - low) * (1.0 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


def _blob(x: Array, y: Array, cx: float, cy: float, wx: float, wy: float) -> Array:
    return np.exp(-(((x - cx) / wx) ** 2) - ((y - cy) / wy) ** 2)


def _mix(colour: Array, other: Array, amount: Array) -> Array:
    return colour + amount[:, None] * (np.asarray(other, np.float32) - colour)


def _noise(x: Array, y: Array, phase: Array) -> Array:
    """Cheap smooth noise in about [-1, 1]."""
    return np.sin(x + 1.7 * np.sin(0.7 * y + phase[0]) + phase[1]) * np.sin(
        1.1 * y + 1.3 * np.sin(0.8 * x + phase[2]) + phase[3]
    )


def _scalp(person: Person, x: Array, y: Array, z: Array) -> Array:
    """Amount of hair colour on the skin under and next to the hair."""
    c, n = np.cos(hair.TILT), np.sin(hair.TILT)
    up, front = c * y - n * z, c * z + n * y
    polar = np.arctan2(np.hypot(x, front), up)
    turn = np.arctan2(x, front)
    line = np.interp(turn, _TURNS, hair.hairline(person, _TURNS)).astype(np.float32)
    ragged = 0.025 * np.sin(37 * turn) * np.sin(15 * turn)
    return (0.30 + 0.6 * hair.cover(person)) * smooth(polar - np.minimum(line, 1.75) - ragged, 0.05, -0.04)


def paint_skin(person: Person, moment: Moment, s: Surfel) -> Coat:
    """Face and ears."""
    x, y, z = s.paint.T
    side, trait, front = np.abs(x), person.trait, smooth(z, 0.08, 0.20)
    extra = moment.beyond
    ear = (side > 0.226) & (np.abs(z - 0.015) < 0.075) & (y < 0.14)
    smile = float(np.clip(moment.expression[0] + 0.6 * moment.expression[[19, 20]].mean(), 0, 2))
    speck = _noise(90 * x + 40 * z, 90 * y, person.phase)
    albedo = (
        person.skin.astype(np.float32)
        * (1 + 0.035 * speck + 0.03 * _noise(31 * x, 27 * y, person.phase[4:]))[:, None]
    )
    warm = (
        0.55 * _blob(side, y, 0.135, -0.015, 0.055, 0.045)
        + 0.45 * _blob(side, y, 0.0, 0.0, 0.05, 0.03)
        + 0.4 * ear
    )
    albedo *= 1 - (0.20 + 0.35 * trait["blush"]) * warm[:, None] * front[:, None] * np.array(
        [0.05, 0.32, 0.30], np.float32
    )
    if trait["freckles"] > 0.75:
        spots = (
            smooth(_noise(420 * x, 410 * y, person.phase), 0.55, 0.8)
            * _blob(side, y, 0.07, 0.015, 0.10, 0.05)
            * front
        )
        albedo *= 1 - (2.0 * (trait["freckles"] - 0.75)) * spots[:, None] * np.array(
            [0.25, 0.45, 0.55], np.float32
        )
    # hair on skin
    above = ((y > 0.02) | (z < 0.12)) & ~ear
    scalp = np.zeros_like(x)
    scalp[above] = _scalp(person, x[above], y[above], z[above])
    albedo = _mix(albedo, 0.8 * person.hair, scalp)
    bearded = trait["beard"] - 0.25 * hair.over_ears(person)
    if bearded > 0.6:
        line = np.interp(side, BEARD_X, BEARD_Y) + 0.006 * np.sin(90 * x + person.phase[1])
        gap = 0.9 * _blob(x, y, 0.0, -0.128, 0.012, 0.008)
        zone = smooth(line - y, -0.012, 0.016) * smooth(s.lip, 0.47, 0.34) * smooth(z, 0.03, 0.10) * (1 - gap)
        density = np.clip((bearded - 0.6) / 0.3, 0, 1) ** 0.8
        albedo = _mix(
            albedo,
            0.75 * person.hair,
            zone * density * (0.86 + 0.07 * _noise(410 * x, 190 * y, person.phase)),
        )
    # brows
    top = np.interp(side, BROW_X, BROW_Y)
    thick = (
        (0.013 + 0.014 * trait["brow"]) * (1 - 0.55 * smooth(side, 0.10, 0.172)) * smooth(side, 0.022, 0.050)
    )
    soft = max(0.0035, 0.7 * s.pixel)
    hairs = (0.92 + 0.08 * np.sin(380 * side + 200 * (y - top))) * smooth(side, 0.020, 0.052)
    brow = (
        smooth(top + 0.001 - y, -soft, soft)
        * smooth(y - (top - thick), -soft, soft)
        * smooth(side, 0.176, 0.160)
        * front
    )
    albedo = _mix(albedo, person.brow, brow * hairs * (0.62 + 0.33 * trait["brow_dark"]))
    # lids: shadow on the lid, crease, lashes
    eye_line = 0.0875
    upper = smooth(y - eye_line, -0.004, 0.002)
    albedo *= (1 - 0.13 * smooth(s.lid, 0.35, 0.8))[:, None]
    albedo *= (1 - (0.34 + 0.2 * trait["age"]) * np.exp(-(((s.lid - 0.52) / 0.11) ** 2)) * upper)[:, None]
    albedo *= (1 - (0.10 + 0.24 * trait["age"]) * np.exp(-(((s.lid - 0.30) / 0.16) ** 2)) * (1 - upper))[
        :, None
    ]
    lash = smooth(s.lid, 0.80, 0.93) * (0.25 + 0.70 * upper)
    albedo = _mix(albedo, 0.10 * person.brow + 0.004, np.clip(lash, 0, 0.95))
    # lips
    lips = smooth(s.lip, 0.46, 0.60)
    lipstick = (
        person.lips.astype(np.float32) * (1 + 0.10 * np.sin(430 * x) * smooth(s.lip, 0.5, 0.9))[:, None]
    )
    albedo = albedo + lips[:, None] * (lipstick - albedo)
    albedo *= (1 - 0.45 * smooth(s.lip, 0.985, 1.0) * np.exp(-(((y + 0.0915) / 0.0035) ** 2)))[:, None]
    # folds and occlusion
    fold_x = 0.056 + 0.052 * smooth(y, -0.015, -0.10)
    fold = np.exp(-(((side - fold_x) / 0.007) ** 2)) * smooth(y, -0.118, -0.09) * smooth(y, 0.005, -0.02)
    dark = (0.08 + 0.22 * trait["age"] + 0.22 * smile) * fold
    dark += 0.30 * extra["dimples"] * _blob(side, y, 0.118, -0.075, 0.008, 0.016)
    dark += 0.85 * _blob(side, y, 0.0205, -0.0265, 0.0105, 0.0052) * smooth(z, 0.25, 0.30)  # nostrils
    dark += 0.22 * _blob(side, y, 0.054, -0.010, 0.006, 0.018) + 0.16 * _blob(
        side, y, 0.0, -0.135, 0.045, 0.010
    )
    dark += 0.20 * _blob(side, y, 0.045, 0.10, 0.014, 0.030) + 0.16 * _blob(x, y, 0.0, -0.04, 0.006, 0.014)
    dark += 0.35 * smooth(y, -0.20, -0.245) * smooth(z, 0.34, 0.2) + 0.30 * (side > 0.225) * _blob(
        z, y, 0.015, 0.025, 0.02, 0.035
    )
    if extra["wrinkles"] or trait["age"] > 0.6:
        brow_to_hair = smooth(y, 0.185, 0.20) * smooth(y, 0.285, 0.265) * smooth(side, 0.16, 0.08) * front
        lines = np.sin(235 * y + 0.9 * np.sin(18 * x)) ** 6 * brow_to_hair
        dark += (0.42 * np.clip(extra["wrinkles"], 0, 1.5) + 0.20 * max(trait["age"] - 0.6, 0)) * lines
    if extra["frown_lines"]:
        dark += 0.40 * extra["frown_lines"] * _blob(side, y, 0.016, 0.135, 0.005, 0.022) * front
    gloss = 0.10 + 0.08 * _blob(x, y, 0.0, 0.01, 0.02, 0.05) + 0.22 * lips + 0.03 * speck
    return Coat(albedo, np.clip(1 - dark, 0.08, 1), gloss * (1 - scalp) * (1 - 0.8 * brow), 22.0)


def paint_bust(person: Person, moment: Moment, s: Surfel) -> Coat:
    """Neck and shirt."""
    x, y, z = s.paint.T
    depth = 0.02 + 0.16 * person.trait["neckline"]
    neckline = -0.335 - depth * smooth(z, -0.05, 0.12) * np.exp(-((x / 0.16) ** 2))
    shirt = smooth(neckline - y, -0.004, 0.004)
    weave = (
        1
        + 0.05 * np.sin(260 * x + 30 * z) * np.sin(260 * y)
        + 0.10 * np.sin(17 * x + 9 * y + person.phase[6])
    )
    collar = np.exp(-(((neckline - y - 0.012) / 0.007) ** 2))
    cloth = person.shirt.astype(np.float32) * (weave * (1 - 0.35 * collar))[:, None]
    skin = person.skin.astype(np.float32) * (0.95 + 0.03 * _noise(60 * x, 50 * y, person.phase))[:, None]
    chin = 0.50 * smooth(y, -0.36, -0.21) * smooth(z, -0.14, 0.05) + 0.25 * smooth(y, -0.30, -0.18)
    hollow = 0.22 * _blob(x, y, 0.0, -0.385, 0.02, 0.02) * smooth(z, 0.0, 0.05)
    occlusion = np.clip(
        1 - chin - hollow * (1 - shirt) - 0.25 * np.exp(-(((neckline - y + 0.008) / 0.01) ** 2)), 0.2, 1
    )
    return Coat(skin + shirt[:, None] * (cloth - skin), occlusion, 0.06 * (1 - shirt), 18.0)


def paint_eye(person: Person, moment: Moment, s: Surfel) -> Coat:
    """Sclera, iris with fibres and limbus, pupil; darker under the upper lid."""
    d = eye_offset(s.paint)
    angle = np.arctan2(np.hypot(d[:, 0], d[:, 1]), d[:, 2])
    turn = np.arctan2(d[:, 1], d[:, 0])
    soft = max(0.03, s.pixel / 0.0425)
    radius = 0.445
    white = linear((226, 219, 214)).astype(np.float32) * (1 - 0.10 * smooth(angle, 0.6, 1.2))[:, None]
    fibres = 0.30 * np.sin(17 * turn + person.phase[1]) * np.sin(7 * turn) + 0.35 * smooth(angle, 0.2, 0.4)
    ring = person.iris.astype(np.float32) * (1 + fibres)[:, None]
    ring = _mix(ring, 0.15 * person.iris, smooth(angle, 0.36, radius))
    albedo = ring + smooth(angle, radius - soft, radius + soft)[:, None] * (white - ring)
    albedo = _mix(albedo, np.full(3, 0.004), smooth(angle, 0.185 + 0.6 * soft, 0.185 - 0.6 * soft))
    n = s.normal
    occlusion = (
        1
        - 0.62 * smooth(n[:, 1], 0.05, 0.42)
        - 0.22 * smooth(np.abs(n[:, 0]), 0.45, 0.9)
        - 0.15 * smooth(-n[:, 1], 0.15, 0.4)
    )
    return Coat(albedo, np.clip(occlusion, 0.15, 1), 0.9, 160.0)


def paint_mouth(person: Person, moment: Moment, s: Surfel) -> Coat:
    """Inside of the mouth: red, darker inwards; the tongue below."""
    y, z = s.paint[:, 1], s.paint[:, 2]
    tongue = smooth(-0.0915 - y, 0.004, 0.022) * smooth(z, 0.19, 0.26)
    albedo = _mix(
        np.tile(np.array([0.13, 0.022, 0.020], np.float32), (len(y), 1)), np.array([0.44, 0.12, 0.11]), tongue
    )
    return Coat(albedo, 0.16 + 0.55 * smooth(z, 0.22, 0.335), 0.10, 30.0)


def paint_teeth(person: Person, moment: Moment, s: Surfel) -> Coat:
    """Teeth with gaps and gums; darker at the sides of the mouth."""
    x, y, _ = s.paint.T
    upper = y > -0.0975
    place = np.arcsin(np.clip(x / 0.061, -1, 1)) * np.where(upper, 6.4, 8.2)
    gap = np.exp(-((np.abs(place - np.round(place)) - 0.5) ** 2) / 0.004)
    gum = np.where(upper, smooth(y, -0.079, -0.073), smooth(y, -0.114, -0.119))
    albedo = np.tile(linear((236, 228, 212)).astype(np.float32), (len(x), 1)) * (1 - 0.40 * gap)[:, None]
    albedo = _mix(albedo, np.array([0.42, 0.14, 0.13]), gum)
    return Coat(albedo, (1 - 0.5 * smooth(np.abs(x), 0.022, 0.060)) * np.where(upper, 0.95, 0.62), 0.30, 60.0)


def paint_hair(person: Person, moment: Moment, s: Surfel) -> Coat:
    """Strands: streaks along the paths, darker roots and inner layers."""
    along, turn = s.paint[:, 0], s.paint[:, 1]
    swept = 1.6 * (person.trait["parting"] - 0.5) * (1 - person.trait["fringe"]) * np.clip(1.2 - along, 0, 1)
    turn = turn + swept * np.cos(0.5 * turn) ** 2 * along  # combed to one side at the front
    bend = 0.5 * person.trait["wave"] * np.sin(9 * along + person.phase[5])
    strand = np.sin(61 * turn + 4 * bend + person.phase[0]) * np.sin(23 * turn + 9 * along + 3 * bend)
    strand += 0.7 * np.sin(140 * turn + 12 * bend + 3 * along)
    streak = np.sin(11 * turn + person.phase[3] + 2 * bend)
    albedo = person.hair.astype(np.float32) * np.clip(1 + 0.26 * strand + 0.14 * streak, 0.3, 1.8)[:, None]
    band = np.exp(-(((along - 0.42 - 0.05 * strand) / 0.12) ** 2))
    occlusion = 1 - 0.30 * smooth(along, 0.10, 0.0) - 0.12 * smooth(strand, 0.2, -1.2)
    return Coat(albedo, occlusion, (0.10 + 0.16 * band) * (1 + 0.6 * strand), 14.0)


def background(person: Person, size: int) -> Array:
    """The room behind a person, (size, size, 3) linear light: soft gradient between four corners with two faint out-of-focus shapes."""
    grid = ((np.arange(size) + 0.5) / size).astype(np.float32)
    u, v = grid[None, :, None], grid[:, None, None]
    c = person.background.astype(np.float32)
    colour = (1 - v) * ((1 - u) * c[0] + u * c[1]) + v * ((1 - u) * c[2] + u * c[3])
    for k in range(2):
        cu, cv = 0.5 + 0.45 * np.sin(person.phase[2 * k]), 0.35 + 0.35 * np.sin(person.phase[2 * k + 1])
        colour = colour * (
            1 + (0.35 if k else -0.30) * np.exp(-(((u - cu) / 0.20) ** 2) - ((v - cv) / 0.28) ** 2)
        )
    return colour


PAINTERS = (paint_skin, paint_bust, paint_eye, paint_mouth, paint_hair, paint_teeth)  # by material number
