"""Colours of a generated person, computed at visible pixels only. Linear light.

Everything is a function of paint coordinates (the template's, so that paint sticks to the moving skin) and of
the person. The skin of the face has a module of its own.
"""

import numpy as np

from pipeline.geometry.standin_openings import EYE_RADIUS
from pipeline.synthetic.brushes import Array, Coat, Surfel, blob, mix, noise, ridge, smooth, tint
from pipeline.synthetic.person import Person, linear
from pipeline.synthetic.scene import Moment, eye_offset
from pipeline.synthetic.skin import LIP_LINE, paint_skin

IRIS, PUPIL = 0.445, 0.185  # radians from the middle of the eye

SCLERA = linear((226, 219, 214))
PUPIL_BLACK = (0.004, 0.004, 0.004)
THROAT = np.array([0.13, 0.022, 0.020], np.float32)
TONGUE = (0.44, 0.12, 0.11)
ENAMEL = linear((236, 228, 212))
GUM = (0.42, 0.14, 0.13)


def paint_bust(person: Person, moment: Moment, s: Surfel) -> Coat:
    """Neck and shirt."""
    x, y, z = s.paint.T
    depth = 0.02 + 0.16 * person.trait["neckline"]
    # A neckline is cut out at the front alone: the back of a shirt is straight.
    in_front = smooth(z, -0.05, 0.12)
    cut = depth * in_front * ridge(x, 0.0, 0.16)
    below = -0.335 - cut - y
    shirt = smooth(below, -0.004, 0.004)
    bare = 1 - shirt
    speck = noise(60 * x, 50 * y, person.phase)
    uneven = 0.95 + 0.03 * speck
    skin = tint(person.skin, uneven)
    cloth = _cloth(person, s, below)
    # The collar shades what is next to it.
    hollow = blob(x, y, 0.0, -0.385, 0.02, 0.02)
    hollow = 0.22 * hollow * smooth(z, 0.0, 0.05)
    at_collar = 0.25 * ridge(below, -0.008, 0.01)
    chin = _under_chin(y, z)
    occlusion = 1 - chin - hollow * bare - at_collar
    return Coat(
        albedo=skin + shirt[:, None] * (cloth - skin),
        occlusion=np.clip(occlusion, 0.2, 1),
        gloss=0.06 * bare,
        sharpness=18.0,
    )


def _cloth(person: Person, s: Surfel, below: Array) -> Array:
    """The shirt: woven threads, folds, and a darker collar just `below` the neckline."""
    x, y, z = s.paint.T
    across = np.sin(260 * x + 30 * z)
    along = np.sin(260 * y)
    threads = 0.05 * across * along
    hang = 17 * x + 9 * y + person.phase[6]
    folds = 0.10 * np.sin(hang)
    weave = 1 + threads + folds
    collar = 1 - 0.35 * ridge(below, 0.012, 0.007)
    return tint(person.shirt, weave * collar)


def _under_chin(y: Array, z: Array) -> Array:
    """The shadow of the head on the neck."""
    high = 0.50 * smooth(y, -0.36, -0.21)
    in_front = smooth(z, -0.14, 0.05)
    close = 0.25 * smooth(y, -0.30, -0.18)
    return high * in_front + close


def paint_eye(person: Person, moment: Moment, s: Surfel) -> Coat:
    """Sclera, iris with fibres and limbus, pupil; darker under the upper lid."""
    offset = eye_offset(s.paint)
    x, y, z = offset.T
    off_axis = np.hypot(x, y)
    angle = np.arctan2(off_axis, z)
    turn = np.arctan2(y, x)
    iris = _iris(person, angle, turn)
    veins = 1 - 0.10 * smooth(angle, 0.6, 1.2)
    white = tint(SCLERA, veins)
    # Edges are at least a pixel soft, or they would flicker.
    soft = max(0.03, s.pixel / EYE_RADIUS)
    outside = smooth(angle, IRIS - soft, IRIS + soft)
    albedo = mix(iris, white, outside)
    half = 0.6 * soft
    pupil = smooth(angle, PUPIL + half, PUPIL - half)
    albedo = mix(albedo, PUPIL_BLACK, pupil)
    return Coat(
        albedo=albedo,
        occlusion=_under_lids(s.normal),
        gloss=0.9,
        sharpness=160.0,
    )


def _iris(person: Person, angle: Array, turn: Array) -> Array:
    """Fibres along the radius, and the dark ring at the edge."""
    first = 17 * turn + person.phase[1]
    second = 7 * turn
    spokes = 0.30 * np.sin(first) * np.sin(second)
    outer = 0.35 * smooth(angle, 0.2, 0.4)
    fibres = spokes + outer
    iris = tint(person.iris, 1 + fibres)
    limbus = smooth(angle, 0.36, IRIS)
    return mix(iris, 0.15 * person.iris, limbus)


def _under_lids(normal_N3: Array) -> Array:
    """Occlusion of the eye: lids and lashes shade what faces them."""
    across = normal_N3[:, 0]
    up = normal_N3[:, 1]
    upper = smooth(up, 0.05, 0.42)
    sides = smooth(np.abs(across), 0.45, 0.9)
    lower = smooth(-up, 0.15, 0.4)
    occlusion = 1 - 0.62 * upper - 0.22 * sides - 0.15 * lower
    return np.clip(occlusion, 0.15, 1)


def paint_mouth(person: Person, moment: Moment, s: Surfel) -> Coat:
    """Inside of the mouth: red, darker inwards; the tongue below."""
    y = s.paint[:, 1]
    z = s.paint[:, 2]
    low = smooth(LIP_LINE - y, 0.004, 0.022)
    tongue = low * smooth(z, 0.19, 0.26)
    return Coat(
        albedo=mix(THROAT, TONGUE, tongue),
        occlusion=0.16 + 0.55 * smooth(z, 0.22, 0.335),
        gloss=0.10,
        sharpness=30.0,
    )


def paint_teeth(person: Person, moment: Moment, s: Surfel) -> Coat:
    """Teeth with gaps and gums; darker at the sides of the mouth."""
    x, y, _ = s.paint.T
    upper = y > -0.0975
    # The place along the arc of the jaw, in teeth; the lower ones are smaller.
    sine = np.clip(x / 0.061, -1, 1)
    per_radian = np.where(upper, 6.4, 8.2)
    place = np.arcsin(sine) * per_radian
    off_middle = np.abs(place - np.round(place))
    to_edge = off_middle - 0.5
    gap = np.exp(-(to_edge**2) / 0.004)
    upper_gum = smooth(y, -0.079, -0.073)
    lower_gum = smooth(y, -0.114, -0.119)
    gum = np.where(upper, upper_gum, lower_gum)
    enamel = tint(ENAMEL, 1 - 0.40 * gap)
    side = smooth(np.abs(x), 0.022, 0.060)
    open_to_light = np.where(upper, 0.95, 0.62)
    return Coat(
        albedo=mix(enamel, GUM, gum),
        occlusion=(1 - 0.5 * side) * open_to_light,
        gloss=0.30,
        sharpness=60.0,
    )


def paint_hair(person: Person, moment: Moment, s: Surfel) -> Coat:
    """Strands: streaks along the paths, darker roots and inner layers."""
    phase = person.phase
    along = s.paint[:, 0]
    turn = _combed(person, s)
    wave = person.trait["wave"]
    wavy = 9 * along + phase[5]
    bend = 0.5 * wave * np.sin(wavy)
    # The finer a wave, the more the bend makes it waver.
    streaks = 11 * turn + phase[3] + 2 * bend
    coarse = 23 * turn + 9 * along + 3 * bend
    fine = 61 * turn + 4 * bend + phase[0]
    finest = 140 * turn + 12 * bend + 3 * along
    # The product of two waves looks less regular than either.
    strand = np.sin(fine) * np.sin(coarse)
    strand += 0.7 * np.sin(finest)
    light = 1 + 0.26 * strand + 0.14 * np.sin(streaks)
    # The band of light that lies across hair, bent by its strands.
    band = ridge(along - 0.42, 0.05 * strand, 0.12)
    shine = 0.10 + 0.16 * band
    roots = 0.30 * smooth(along, 0.10, 0.0)
    layers = 0.12 * smooth(strand, 0.2, -1.2)
    return Coat(
        albedo=tint(person.hair, np.clip(light, 0.3, 1.8)),
        occlusion=1 - roots - layers,
        gloss=shine * (1 + 0.6 * strand),
        sharpness=14.0,
    )


def _combed(person: Person, s: Surfel) -> Array:
    """The angles around the crown, with the hair at the front combed to one side."""
    trait = person.trait
    along = s.paint[:, 0]
    turn = s.paint[:, 1]
    to_side = 1.6 * (trait["parting"] - 0.5)
    free = 1 - trait["fringe"]
    at_root = np.clip(1.2 - along, 0, 1)
    swept = to_side * free * at_root
    front = np.cos(0.5 * turn) ** 2
    return turn + swept * front * along


def background(person: Person, size: int) -> Array:
    """The room behind a person, (size, size, 3) linear light.

    It is a soft gradient with two faint shapes out of focus.
    """
    steps = (np.arange(size) + 0.5) / size
    grid = steps.astype(np.float32)
    u = grid[None, :, None]
    v = grid[:, None, None]
    corners = person.background.astype(np.float32)
    upper_left, upper_right, lower_left, lower_right = corners
    upper = _between(upper_left, upper_right, u)
    lower = _between(lower_left, lower_right, u)
    colour = _between(upper, lower, v)
    dark = _shape(u, v, person.phase[:2])
    bright = _shape(u, v, person.phase[2:4])
    colour = colour * (1 - 0.30 * dark)
    return colour * (1 + 0.35 * bright)


def _shape(u: Array, v: Array, phase: Array) -> Array:
    """Something out of focus, anywhere but in the lowest part of the picture."""
    right, down = np.sin(phase)
    middle_u = 0.5 + 0.45 * right
    middle_v = 0.35 + 0.35 * down
    return blob(u, v, middle_u, middle_v, 0.20, 0.28)


def _between(first: Array, second: Array, place: Array) -> Array:
    """`first` where `place` is 0, `second` where it is 1."""
    return (1 - place) * first + place * second


# By material number.
PAINTERS = (
    paint_skin,
    paint_bust,
    paint_eye,
    paint_mouth,
    paint_hair,
    paint_teeth,
)
