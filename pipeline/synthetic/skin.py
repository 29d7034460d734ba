"""Colours of face and ears: complexion, hair on the skin, brows, lids, lips, folds and wrinkles.

Lengths are world units of the template, which is the same for all people, so that paint sticks to the moving
skin.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.synthetic import hair
from pipeline.synthetic.brushes import Array, Coat, Surfel, absorb, blob, mix, noise, ridge, smooth, tint
from pipeline.synthetic.person import Person
from pipeline.synthetic.scene import Moment

_TURNS = np.linspace(-np.pi, np.pi, 121)  # around the crown
EYE_LINE = 0.0875  # y between the lids
LIP_LINE = -0.0915  # y between the lips

# The upper edges of the brows and of the beard: x from the middle of the face, and y.
BROW = np.array(
    [
        (0.0, 0.135),
        (0.030, 0.138),
        (0.039, 0.1425),
        (0.0715, 0.1515),
        (0.1045, 0.1535),
        (0.1365, 0.1455),
        (0.164, 0.1185),
        (0.180, 0.10),
    ],
    np.float32,
)
BEARD = np.array(
    [
        (0.0, -0.042),
        (0.05, -0.046),
        (0.09, -0.066),
        (0.13, -0.088),
        (0.18, -0.05),
        (0.215, 0.03),
        (0.25, 0.05),
    ],
    np.float32,
)

# Soft spots, the same on both sides: their middles (x, y), and how far they reach along x and y.
SPOTS = {
    "cheek": (0.135, -0.015, 0.055, 0.045),
    "nose": (0.0, 0.0, 0.05, 0.03),
    "bridge of the nose": (0.0, 0.01, 0.02, 0.05),
    "freckles": (0.07, 0.015, 0.10, 0.05),
    "below the lip": (0.0, -0.128, 0.012, 0.008),
    "dimple": (0.118, -0.075, 0.008, 0.016),
    "nostril": (0.0205, -0.0265, 0.0105, 0.0052),
    "wing of the nose": (0.054, -0.010, 0.006, 0.018),
    "chin": (0.0, -0.135, 0.045, 0.010),
    "corner of the eye": (0.045, 0.10, 0.014, 0.030),
    "philtrum": (0.0, -0.04, 0.006, 0.014),
    "frown": (0.016, 0.135, 0.005, 0.022),
}

# The shares of red, green and blue that blood and freckles absorb.
BLOOD = (0.05, 0.32, 0.30)
FRECKLE = (0.25, 0.45, 0.55)


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

    @classmethod
    def of(cls, person: Person, moment: Moment, points: Surfel) -> "_Face":
        x, y, z = points.paint.T
        side = np.abs(x)
        at_ear = np.abs(z - 0.015) < 0.075
        return cls(
            person=person,
            moment=moment,
            points=points,
            x=x,
            y=y,
            z=z,
            side=side,
            front=smooth(z, 0.08, 0.20),
            ear=(side > 0.226) & at_ear & (y < 0.14),
            speck=noise(90 * x + 40 * z, 90 * y, person.phase),
        )

    def trait(self, name: str) -> float:
        return self.person.trait[name]

    def smile(self) -> float:
        """How much the mouth smiles, 0 to 2: both corners of the mouth count, or one of them."""
        expression = self.moment.expression
        one_sided = expression[[19, 20]].mean()
        smile = expression[0] + 0.6 * one_sided
        return float(np.clip(smile, 0, 2))

    def spot(self, name: str) -> Array:
        """One of SPOTS: 1 in its middle, falling around it."""
        return blob(self.side, self.y, *SPOTS[name])


def paint_skin(person: Person, moment: Moment, s: Surfel) -> Coat:
    """Face and ears."""
    face = _Face.of(person, moment, s)
    scalp = _scalp(face)
    brow, hairs = _brow(face)
    brow_dark = 0.62 + 0.33 * face.trait("brow_dark")
    brow_hairs = brow * hairs * brow_dark
    lips = smooth(s.lip, 0.46, 0.60)
    # The layers lie on each other: what is painted later covers what is below.
    albedo = _complexion(face)
    albedo = mix(albedo, 0.8 * person.hair, scalp)
    albedo = _with_beard(face, albedo)
    albedo = mix(albedo, person.brow, brow_hairs)
    albedo = _with_lids(face, albedo)
    albedo = _with_lips(face, albedo, lips)
    nose = face.spot("bridge of the nose")
    gloss = 0.10 + 0.08 * nose + 0.22 * lips + 0.03 * face.speck
    return Coat(
        albedo=albedo,
        occlusion=np.clip(1 - _folds(face), 0.08, 1),
        gloss=gloss * (1 - scalp) * (1 - 0.8 * brow),
        sharpness=22.0,
    )


def _complexion(face: _Face) -> Array:
    """Bare skin: specks, red cheeks, nose and ears, freckles."""
    phase = face.person.phase
    broad = noise(31 * face.x, 27 * face.y, phase[4:])
    uneven = 1 + 0.035 * face.speck + 0.03 * broad
    albedo = tint(face.person.skin, uneven)
    cheeks = 0.55 * face.spot("cheek")
    nose = 0.45 * face.spot("nose")
    warm = cheeks + nose + 0.4 * face.ear
    blush = 0.20 + 0.35 * face.trait("blush")
    red = blush * warm * face.front
    albedo = absorb(albedo, BLOOD, red)
    # A quarter of the people have freckles, from hardly any to many.
    freckled = face.trait("freckles") - 0.75
    if freckled > 0:
        specks = noise(420 * face.x, 410 * face.y, phase)
        dots = smooth(specks, 0.55, 0.8)
        dots = dots * face.spot("freckles") * face.front
        amount = 2.0 * freckled * dots
        albedo = absorb(albedo, FRECKLE, amount)
    return albedo


def _scalp(face: _Face) -> Array:
    """Amount of hair colour on the skin under and next to the hair."""
    person = face.person
    around = (face.y > 0.02) | (face.z < 0.12)
    above = around & ~face.ear
    polar, turn = _from_crown(face, above)
    hairline = hair.hairline(person, _TURNS)
    line = np.interp(turn, _TURNS, hairline)
    # Hair longer than the skull hangs from it: no skin further down carries roots.
    line = np.minimum(line.astype(np.float32), 1.75)
    wide = np.sin(15 * turn)
    narrow = np.sin(37 * turn)
    ragged = 0.025 * narrow * wide
    within = smooth(polar - line - ragged, 0.05, -0.04)
    density = 0.30 + 0.6 * hair.cover(person)
    amount = np.zeros_like(face.x)
    amount[above] = density * within
    return amount


def _from_crown(face: _Face, chosen: Array) -> tuple[Array, Array]:
    """Angles of the chosen points (bool): from the crown, and around it (0 = front)."""
    x = face.x[chosen]
    y = face.y[chosen]
    z = face.z[chosen]
    c = np.cos(hair.TILT)
    n = np.sin(hair.TILT)
    up = c * y - n * z
    front = c * z + n * y
    across = np.hypot(x, front)
    polar = np.arctan2(across, up)
    turn = np.arctan2(x, front)
    return polar, turn


def _with_beard(face: _Face, albedo: Array) -> Array:
    """The beard, if there is one; people with long hair have it less often."""
    person = face.person
    bearded = face.trait("beard") - 0.25 * hair.over_ears(person)
    if bearded <= 0.6:
        return albedo
    density = np.clip((bearded - 0.6) / 0.3, 0, 1) ** 0.8
    hairs = noise(410 * face.x, 190 * face.y, person.phase)
    uneven = 0.86 + 0.07 * hairs
    amount = _beard_zone(face) * density * uneven
    return mix(albedo, 0.75 * person.hair, amount)


def _beard_zone(face: _Face) -> Array:
    """Where a beard grows, in [0, 1]: below its edge, around the lips, with a gap below the lower one."""
    phase = face.person.phase
    wave = 90 * face.x + phase[1]
    ragged = 0.006 * np.sin(wave)
    edge = np.interp(face.side, *BEARD.T) + ragged
    below = smooth(edge - face.y, -0.012, 0.016)
    beside_lips = smooth(face.points.lip, 0.47, 0.34)
    in_front = smooth(face.z, 0.03, 0.10)
    gap = 0.9 * face.spot("below the lip")
    return below * beside_lips * in_front * (1 - gap)


def _brow(face: _Face) -> tuple[Array, Array]:
    """Where the brows are, and how their hairs lie, both in [0, 1]."""
    y = face.y
    side = face.side
    top = np.interp(side, *BROW.T)
    # Brows thin out towards the temple and the nose.
    outer = 1 - 0.55 * smooth(side, 0.10, 0.172)
    inner = smooth(side, 0.022, 0.050)
    thick = 0.013 + 0.014 * face.trait("brow")
    bottom = top - thick * outer * inner
    # No edge is sharper than a pixel, or it would flicker.
    soft = max(0.0035, 0.7 * face.points.pixel)
    upper_edge = smooth(top + 0.001 - y, -soft, soft)
    lower_edge = smooth(y - bottom, -soft, soft)
    before_temple = smooth(side, 0.176, 0.160)
    brow = upper_edge * lower_edge * before_temple * face.front
    slanted = 380 * side + 200 * (y - top)
    stripes = 0.92 + 0.08 * np.sin(slanted)
    beside_nose = smooth(side, 0.020, 0.052)
    return brow, stripes * beside_nose


def _with_lids(face: _Face, albedo: Array) -> Array:
    """Shadow on the lids, the crease above and the fold below, lashes."""
    lid = face.points.lid
    age = face.trait("age")
    upper = smooth(face.y - EYE_LINE, -0.004, 0.002)
    # Age deepens the crease above the eye, and more so the fold below it.
    shadow = 0.13 * smooth(lid, 0.35, 0.8)
    crease_depth = 0.34 + 0.2 * age
    crease = crease_depth * ridge(lid, 0.52, 0.11) * upper
    bag_depth = 0.10 + 0.24 * age
    bag = bag_depth * ridge(lid, 0.30, 0.16) * (1 - upper)
    for dark in (shadow, crease, bag):
        albedo *= (1 - dark)[:, None]
    margin = smooth(lid, 0.80, 0.93)
    lash = margin * (0.25 + 0.70 * upper)
    lash = np.clip(lash, 0, 0.95)
    colour = 0.10 * face.person.brow + 0.004
    return mix(albedo, colour, lash)


def _with_lips(face: _Face, albedo: Array, lips: Array) -> Array:
    """Lips with their furrows, and the dark line between them."""
    lip = face.points.lip
    waves = 0.10 * np.sin(430 * face.x)
    furrows = 1 + waves * smooth(lip, 0.5, 0.9)
    colour = tint(face.person.lips, furrows)
    albedo = mix(albedo, colour, lips)
    touching = 0.45 * smooth(lip, 0.985, 1.0)
    between = touching * ridge(face.y, LIP_LINE, 0.0035)
    albedo *= (1 - between)[:, None]
    return albedo


def _folds(face: _Face) -> Array:
    """How much light folds, hollows and wrinkles keep away, from 0."""
    beyond = face.moment.beyond
    dark = _smile_fold(face)
    dimpled = 0.30 * beyond["dimples"]
    dark += dimpled * face.spot("dimple")
    # The spot of a nostril reaches through the head: only its front is one.
    nostril = 0.85 * face.spot("nostril")
    dark += nostril * smooth(face.z, 0.25, 0.30)
    wings = 0.22 * face.spot("wing of the nose")
    chin = 0.16 * face.spot("chin")
    dark += wings + chin
    eye_corner = 0.20 * face.spot("corner of the eye")
    philtrum = 0.16 * face.spot("philtrum")
    dark += eye_corner + philtrum
    dark += _under_jaw(face) + _in_ear(face)
    # Age draws the lines of the forehead into a face at rest.
    aged = max(face.trait("age") - 0.6, 0)
    if beyond["wrinkles"] or aged > 0:
        raised = np.clip(beyond["wrinkles"], 0, 1.5)
        depth = 0.42 * raised + 0.20 * aged
        dark += depth * _wrinkles(face)
    frown = 0.40 * beyond["frown_lines"]
    if frown:
        dark += frown * face.spot("frown") * face.front
    return dark


def _smile_fold(face: _Face) -> Array:
    """The fold from the nose to the corner of the mouth, deeper with age and with smiles."""
    y = face.y
    # The fold runs outwards and down.
    outwards = smooth(y, -0.015, -0.10)
    line = ridge(face.side, 0.056 + 0.052 * outwards, 0.007)
    above_mouth = smooth(y, -0.118, -0.09)
    below_nose = smooth(y, 0.005, -0.02)
    fold = line * above_mouth * below_nose
    age = face.trait("age")
    depth = 0.08 + 0.22 * age + 0.22 * face.smile()
    return depth * fold


def _under_jaw(face: _Face) -> Array:
    low = smooth(face.y, -0.20, -0.245)
    behind_chin = smooth(face.z, 0.34, 0.2)
    return 0.35 * low * behind_chin


def _in_ear(face: _Face) -> Array:
    hollow = blob(face.z, face.y, 0.015, 0.025, 0.02, 0.035)
    return 0.30 * (face.side > 0.225) * hollow


def _wrinkles(face: _Face) -> Array:
    """Lines across the forehead, in [0, 1]."""
    above_brows = smooth(face.y, 0.185, 0.20)
    below_hair = smooth(face.y, 0.285, 0.265)
    between_temples = smooth(face.side, 0.16, 0.08)
    forehead = above_brows * below_hair * between_temples * face.front
    wavy = 0.9 * np.sin(18 * face.x)
    # A high power leaves thin lines of the waves.
    waves = np.sin(235 * face.y + wavy)
    lines = waves**6
    return lines * forehead
