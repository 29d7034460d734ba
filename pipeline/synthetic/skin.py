"""Colours of face and ears: complexion, hair on the skin, brows, lids, lips, folds and wrinkles.

Lengths are world units of the template, which is the same for all people, so that paint sticks to the moving
skin.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.synthetic import hair
from pipeline.synthetic.brushes import Array, Coat, Surfel, blob, mix, noise, ridge, smooth
from pipeline.synthetic.person import Person
from pipeline.synthetic.scene import Moment

_TURNS = np.linspace(-np.pi, np.pi, 121)  # around the crown
# The upper edge of the brows and of the beard, as y at x.
BROW_X = np.array([0.0, 0.030, 0.039, 0.0715, 0.1045, 0.1365, 0.164, 0.180], np.float32)
BROW_Y = np.array([0.135, 0.138, 0.1425, 0.1515, 0.1535, 0.1455, 0.1185, 0.10], np.float32)
BEARD_X = np.array([0.0, 0.05, 0.09, 0.13, 0.18, 0.215, 0.25], np.float32)
BEARD_Y = np.array([-0.042, -0.046, -0.066, -0.088, -0.05, 0.03, 0.05], np.float32)
EYE_LINE = 0.0875  # y between the lids
LIP_LINE = -0.0915  # y between the lips


@dataclass(frozen=True)
class _Face:
    """What all parts of the face look at."""

    person: Person
    moment: Moment
    points: Surfel
    x: Array
    y: Array
    z: Array
    side: Array  # x without its sign
    front: Array  # 1 in the face, 0 behind it
    ear: Array  # bool
    speck: Array  # fine noise


def paint_skin(person: Person, moment: Moment, s: Surfel) -> Coat:
    """Face and ears."""
    x, y, z = s.paint.T
    side = np.abs(x)
    face = _Face(
        person=person,
        moment=moment,
        points=s,
        x=x,
        y=y,
        z=z,
        side=side,
        front=smooth(z, 0.08, 0.20),
        ear=(side > 0.226) & (np.abs(z - 0.015) < 0.075) & (y < 0.14),
        speck=noise(90 * x + 40 * z, 90 * y, person.phase),
    )
    trait = person.trait
    albedo = _complexion(face)
    scalp = np.zeros_like(x)
    above = ((y > 0.02) | (z < 0.12)) & ~face.ear
    scalp[above] = _scalp(person, x[above], y[above], z[above])
    albedo = mix(albedo, 0.8 * person.hair, scalp)
    bearded = trait["beard"] - 0.25 * hair.over_ears(person)
    if bearded > 0.6:
        albedo = mix(albedo, 0.75 * person.hair, _beard(face, bearded))
    brow, hairs = _brow(face)
    albedo = mix(albedo, person.brow, brow * hairs * (0.62 + 0.33 * trait["brow_dark"]))
    albedo = _with_lids(face, albedo)
    lips = smooth(s.lip, 0.46, 0.60)
    albedo = _with_lips(face, albedo, lips)
    nose = blob(x, y, 0.0, 0.01, 0.02, 0.05)
    gloss = 0.10 + 0.08 * nose + 0.22 * lips + 0.03 * face.speck
    return Coat(
        albedo=albedo,
        occlusion=np.clip(1 - _folds(face), 0.08, 1),
        gloss=gloss * (1 - scalp) * (1 - 0.8 * brow),
        sharpness=22.0,
    )


def _complexion(face: _Face) -> Array:
    """Bare skin: specks, red cheeks, nose and ears, freckles."""
    person = face.person
    trait = face.person.trait
    x = face.x
    y = face.y
    side = face.side
    broad = noise(31 * x, 27 * y, person.phase[4:])
    uneven = 1 + 0.035 * face.speck + 0.03 * broad
    albedo = person.skin.astype(np.float32) * uneven[:, None]
    cheeks = 0.55 * blob(side, y, 0.135, -0.015, 0.055, 0.045)
    nose = 0.45 * blob(side, y, 0.0, 0.0, 0.05, 0.03)
    warm = cheeks + nose + 0.4 * face.ear
    # Blood takes green and blue away.
    red = np.array([0.05, 0.32, 0.30], np.float32)
    blush = 0.20 + 0.35 * trait["blush"]
    albedo *= 1 - blush * warm[:, None] * face.front[:, None] * red
    if trait["freckles"] > 0.75:
        spots = smooth(noise(420 * x, 410 * y, person.phase), 0.55, 0.8)
        spots = spots * blob(side, y, 0.07, 0.015, 0.10, 0.05) * face.front
        brown = np.array([0.25, 0.45, 0.55], np.float32)
        albedo *= 1 - (2.0 * (trait["freckles"] - 0.75)) * spots[:, None] * brown
    return albedo


def _scalp(
    person: Person,
    x: Array,
    y: Array,
    z: Array,
) -> Array:
    """Amount of hair colour on the skin under and next to the hair."""
    c = np.cos(hair.TILT)
    n = np.sin(hair.TILT)
    up = c * y - n * z
    front = c * z + n * y
    polar = np.arctan2(np.hypot(x, front), up)
    turn = np.arctan2(x, front)
    line = np.interp(turn, _TURNS, hair.hairline(person, _TURNS)).astype(np.float32)
    ragged = 0.025 * np.sin(37 * turn) * np.sin(15 * turn)
    beyond = polar - np.minimum(line, 1.75) - ragged
    return (0.30 + 0.6 * hair.cover(person)) * smooth(beyond, 0.05, -0.04)


def _beard(face: _Face, bearded: float) -> Array:
    """Amount of beard, with a gap below the lower lip."""
    person = face.person
    ragged = 0.006 * np.sin(90 * face.x + person.phase[1])
    line = np.interp(face.side, BEARD_X, BEARD_Y) + ragged
    gap = 0.9 * blob(face.x, face.y, 0.0, -0.128, 0.012, 0.008)
    below = smooth(line - face.y, -0.012, 0.016)
    beside_lips = smooth(face.points.lip, 0.47, 0.34)
    zone = below * beside_lips * smooth(face.z, 0.03, 0.10) * (1 - gap)
    density = np.clip((bearded - 0.6) / 0.3, 0, 1) ** 0.8
    uneven = noise(410 * face.x, 190 * face.y, person.phase)
    return zone * density * (0.86 + 0.07 * uneven)


def _brow(face: _Face) -> tuple[Array, Array]:
    """Where the brows are, and how their hairs lie, both in [0, 1]."""
    y, side = face.y, face.side
    top = np.interp(side, BROW_X, BROW_Y)
    # Brows thin out towards the temple and the nose.
    outer = 1 - 0.55 * smooth(side, 0.10, 0.172)
    inner = smooth(side, 0.022, 0.050)
    thick = (0.013 + 0.014 * face.person.trait["brow"]) * outer * inner
    # No edge is sharper than a pixel, or it would flicker.
    soft = max(0.0035, 0.7 * face.points.pixel)
    stripes = np.sin(380 * side + 200 * (y - top))
    hairs = (0.92 + 0.08 * stripes) * smooth(side, 0.020, 0.052)
    upper_edge = smooth(top + 0.001 - y, -soft, soft)
    lower_edge = smooth(y - (top - thick), -soft, soft)
    brow = upper_edge * lower_edge * smooth(side, 0.176, 0.160) * face.front
    return brow, hairs


def _with_lids(face: _Face, albedo: Array) -> Array:
    """Shadow on the lids, the crease above and the fold below, lashes."""
    lid = face.points.lid
    age = face.person.trait["age"]
    upper = smooth(face.y - EYE_LINE, -0.004, 0.002)
    # Age deepens the crease above the eye, and more so the fold below it.
    shadow = 0.13 * smooth(lid, 0.35, 0.8)
    crease = (0.34 + 0.2 * age) * ridge(lid, 0.52, 0.11) * upper
    bag = (0.10 + 0.24 * age) * ridge(lid, 0.30, 0.16) * (1 - upper)
    for dark in (shadow, crease, bag):
        albedo *= (1 - dark)[:, None]
    lash = smooth(lid, 0.80, 0.93) * (0.25 + 0.70 * upper)
    return mix(albedo, 0.10 * face.person.brow + 0.004, np.clip(lash, 0, 0.95))


def _with_lips(face: _Face, albedo: Array, lips: Array) -> Array:
    """Lips with their furrows, and the dark line between them."""
    lip = face.points.lip
    furrows = 1 + 0.10 * np.sin(430 * face.x) * smooth(lip, 0.5, 0.9)
    colour = face.person.lips.astype(np.float32) * furrows[:, None]
    albedo = albedo + lips[:, None] * (colour - albedo)
    between = 0.45 * smooth(lip, 0.985, 1.0) * ridge(face.y, LIP_LINE, 0.0035)
    albedo *= (1 - between)[:, None]
    return albedo


def _folds(face: _Face) -> Array:
    """How much light folds, hollows and wrinkles keep away, from 0."""
    x = face.x
    y = face.y
    z = face.z
    side = face.side
    front = face.front
    age = face.person.trait["age"]
    extra = face.moment.beyond
    expression = face.moment.expression
    # Smiles of both corners of the mouth, and of one.
    one_sided = expression[[19, 20]].mean()
    smile = float(np.clip(expression[0] + 0.6 * one_sided, 0, 2))
    # From the nose to the corners of the mouth.
    fold_x = 0.056 + 0.052 * smooth(y, -0.015, -0.10)
    above_mouth, below_nose = smooth(y, -0.118, -0.09), smooth(y, 0.005, -0.02)
    fold = ridge(side, fold_x, 0.007) * above_mouth * below_nose
    dark = (0.08 + 0.22 * age + 0.22 * smile) * fold
    dark += 0.30 * extra["dimples"] * blob(side, y, 0.118, -0.075, 0.008, 0.016)
    nostrils = blob(side, y, 0.0205, -0.0265, 0.0105, 0.0052)
    dark += 0.85 * nostrils * smooth(z, 0.25, 0.30)
    wings = blob(side, y, 0.054, -0.010, 0.006, 0.018)
    chin = blob(side, y, 0.0, -0.135, 0.045, 0.010)
    dark += 0.22 * wings + 0.16 * chin
    eye_corner = blob(side, y, 0.045, 0.10, 0.014, 0.030)
    philtrum = blob(x, y, 0.0, -0.04, 0.006, 0.014)
    dark += 0.20 * eye_corner + 0.16 * philtrum
    in_ear = 0.30 * (side > 0.225) * blob(z, y, 0.015, 0.025, 0.02, 0.035)
    under_jaw = 0.35 * smooth(y, -0.20, -0.245) * smooth(z, 0.34, 0.2)
    dark += under_jaw + in_ear
    if extra["wrinkles"] or age > 0.6:
        forehead = smooth(y, 0.185, 0.20) * smooth(y, 0.285, 0.265) * smooth(side, 0.16, 0.08) * front
        lines = np.sin(235 * y + 0.9 * np.sin(18 * x)) ** 6 * forehead
        depth = 0.42 * np.clip(extra["wrinkles"], 0, 1.5) + 0.20 * max(age - 0.6, 0)
        dark += depth * lines
    if extra["frown_lines"]:
        dark += 0.40 * extra["frown_lines"] * blob(side, y, 0.016, 0.135, 0.005, 0.022) * front
    return dark
