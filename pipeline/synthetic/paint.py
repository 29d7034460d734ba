"""Colours of a generated person, computed at visible pixels only. Linear light.

Everything is a function of paint coordinates (the template's, so that paint sticks to the moving skin) and of
the person. The skin of the face has a module of its own.
"""

import numpy as np

from pipeline.synthetic.brushes import Array, Coat, Surfel, blob, mix, noise, ridge, smooth
from pipeline.synthetic.person import Person, linear
from pipeline.synthetic.scene import Moment, eye_offset
from pipeline.synthetic.skin import LIP_LINE, paint_skin

IRIS, PUPIL = 0.445, 0.185  # radians from the middle of the eye


def paint_bust(person: Person, moment: Moment, s: Surfel) -> Coat:
    """Neck and shirt."""
    x, y, z = s.paint.T
    depth = 0.02 + 0.16 * person.trait["neckline"]
    neckline = -0.335 - depth * smooth(z, -0.05, 0.12) * ridge(x, 0.0, 0.16)
    below = neckline - y
    shirt = smooth(below, -0.004, 0.004)
    threads = 0.05 * np.sin(260 * x + 30 * z) * np.sin(260 * y)
    folds = 0.10 * np.sin(17 * x + 9 * y + person.phase[6])
    weave = 1 + threads + folds
    collar = ridge(below, 0.012, 0.007)
    cloth = person.shirt.astype(np.float32) * (weave * (1 - 0.35 * collar))[:, None]
    uneven = 0.95 + 0.03 * noise(60 * x, 50 * y, person.phase)
    skin = person.skin.astype(np.float32) * uneven[:, None]
    # The chin shades the neck, the collar what is next to it.
    under_chin = 0.50 * smooth(y, -0.36, -0.21) * smooth(z, -0.14, 0.05)
    chin = under_chin + 0.25 * smooth(y, -0.30, -0.18)
    hollow = 0.22 * blob(x, y, 0.0, -0.385, 0.02, 0.02) * smooth(z, 0.0, 0.05)
    occlusion = 1 - chin - hollow * (1 - shirt) - 0.25 * ridge(below, -0.008, 0.01)
    return Coat(
        albedo=skin + shirt[:, None] * (cloth - skin),
        occlusion=np.clip(occlusion, 0.2, 1),
        gloss=0.06 * (1 - shirt),
        sharpness=18.0,
    )


def paint_eye(person: Person, moment: Moment, s: Surfel) -> Coat:
    """Sclera, iris with fibres and limbus, pupil; darker under the upper lid."""
    d = eye_offset(s.paint)
    x, y, z = d.T
    angle = np.arctan2(np.hypot(x, y), z)
    turn = np.arctan2(y, x)
    soft = max(0.03, s.pixel / 0.0425)
    veins = 1 - 0.10 * smooth(angle, 0.6, 1.2)
    white = linear((226, 219, 214)).astype(np.float32) * veins[:, None]
    spokes = 0.30 * np.sin(17 * turn + person.phase[1]) * np.sin(7 * turn)
    fibres = spokes + 0.35 * smooth(angle, 0.2, 0.4)
    iris = person.iris.astype(np.float32) * (1 + fibres)[:, None]
    iris = mix(iris, 0.15 * person.iris, smooth(angle, 0.36, IRIS))
    outside = smooth(angle, IRIS - soft, IRIS + soft)
    albedo = iris + outside[:, None] * (white - iris)
    pupil = smooth(angle, PUPIL + 0.6 * soft, PUPIL - 0.6 * soft)
    albedo = mix(albedo, np.full(3, 0.004), pupil)
    # Lids and lashes shade what faces them.
    n = s.normal
    upper = 0.62 * smooth(n[:, 1], 0.05, 0.42)
    sides = 0.22 * smooth(np.abs(n[:, 0]), 0.45, 0.9)
    occlusion = 1 - upper - sides - 0.15 * smooth(-n[:, 1], 0.15, 0.4)
    return Coat(albedo, np.clip(occlusion, 0.15, 1), gloss=0.9, sharpness=160.0)


def paint_mouth(person: Person, moment: Moment, s: Surfel) -> Coat:
    """Inside of the mouth: red, darker inwards; the tongue below."""
    y = s.paint[:, 1]
    z = s.paint[:, 2]
    tongue = smooth(LIP_LINE - y, 0.004, 0.022) * smooth(z, 0.19, 0.26)
    throat = np.tile(np.array([0.13, 0.022, 0.020], np.float32), (len(y), 1))
    albedo = mix(throat, np.array([0.44, 0.12, 0.11]), tongue)
    return Coat(
        albedo,
        occlusion=0.16 + 0.55 * smooth(z, 0.22, 0.335),
        gloss=0.10,
        sharpness=30.0,
    )


def paint_teeth(person: Person, moment: Moment, s: Surfel) -> Coat:
    """Teeth with gaps and gums; darker at the sides of the mouth."""
    x, y, _ = s.paint.T
    upper = y > -0.0975
    # The place along the arc in teeth; the lower ones are smaller.
    place = np.arcsin(np.clip(x / 0.061, -1, 1)) * np.where(upper, 6.4, 8.2)
    off_middle = np.abs(place - np.round(place))
    gap = np.exp(-((off_middle - 0.5) ** 2) / 0.004)
    gum = np.where(upper, smooth(y, -0.079, -0.073), smooth(y, -0.114, -0.119))
    enamel = np.tile(linear((236, 228, 212)).astype(np.float32), (len(x), 1))
    albedo = mix(enamel * (1 - 0.40 * gap)[:, None], np.array([0.42, 0.14, 0.13]), gum)
    sides = 1 - 0.5 * smooth(np.abs(x), 0.022, 0.060)
    return Coat(
        albedo,
        occlusion=sides * np.where(upper, 0.95, 0.62),
        gloss=0.30,
        sharpness=60.0,
    )


def paint_hair(person: Person, moment: Moment, s: Surfel) -> Coat:
    """Strands: streaks along the paths, darker roots and inner layers."""
    trait, phase = person.trait, person.phase
    along = s.paint[:, 0]
    turn = s.paint[:, 1]
    # At the front hair is combed to one side.
    swept = 1.6 * (trait["parting"] - 0.5) * (1 - trait["fringe"]) * np.clip(1.2 - along, 0, 1)
    turn = turn + swept * np.cos(0.5 * turn) ** 2 * along
    bend = 0.5 * trait["wave"] * np.sin(9 * along + phase[5])
    fine = np.sin(61 * turn + 4 * bend + phase[0])
    coarse = np.sin(23 * turn + 9 * along + 3 * bend)
    strand = fine * coarse
    strand += 0.7 * np.sin(140 * turn + 12 * bend + 3 * along)
    streak = np.sin(11 * turn + phase[3] + 2 * bend)
    light = np.clip(1 + 0.26 * strand + 0.14 * streak, 0.3, 1.8)
    # The band of light that lies across hair, bent by its strands.
    band = ridge(along - 0.42, 0.05 * strand, 0.12)
    roots = 0.30 * smooth(along, 0.10, 0.0)
    layers = 0.12 * smooth(strand, 0.2, -1.2)
    return Coat(
        albedo=person.hair.astype(np.float32) * light[:, None],
        occlusion=1 - roots - layers,
        gloss=(0.10 + 0.16 * band) * (1 + 0.6 * strand),
        sharpness=14.0,
    )


def background(person: Person, size: int) -> Array:
    """The room behind a person, (size, size, 3) linear light.

    It is a soft gradient with two faint shapes out of focus.
    """
    grid = ((np.arange(size) + 0.5) / size).astype(np.float32)
    u = grid[None, :, None]
    v = grid[:, None, None]
    upper_left, upper_right, lower_left, lower_right = person.background.astype(np.float32)
    upper = (1 - u) * upper_left + u * upper_right
    lower = (1 - u) * lower_left + u * lower_right
    colour = (1 - v) * upper + v * lower
    for number, strength in enumerate((-0.30, 0.35)):
        across, down = np.sin(person.phase[2 * number : 2 * number + 2])
        shape = blob(u, v, 0.5 + 0.45 * across, 0.35 + 0.35 * down, 0.20, 0.28)
        colour = colour * (1 + strength * shape)
    return colour


PAINTERS = (paint_skin, paint_bust, paint_eye, paint_mouth, paint_hair, paint_teeth)  # by material number
