"""Light on a generated person: what colour a visible point has in the picture."""

from dataclasses import dataclass

import numpy as np

from pipeline.synthetic.brushes import Coat, Surfel
from pipeline.synthetic.paint import PAINTERS
from pipeline.synthetic.person import Person
from pipeline.synthetic.scene import HAIR, Figure, Moment, shared_parts

BACK = 0.55  # how much light gets through to the back of a surface

# Colours of light.
AMBIENT = np.array([0.95, 0.98, 1.04], np.float32)
WARM = np.array([1.0, 0.96, 0.90])
COOL = np.array([0.88, 0.94, 1.0])


@dataclass(frozen=True)
class View:
    """What shading has to know of the view."""

    normal_V3: np.ndarray
    room_33: np.ndarray  # from the frame of the lights to the head's
    eye_3: np.ndarray  # unit vector to the camera
    pixel: float  # its size in world units


@dataclass(frozen=True)
class _Light:
    direction: np.ndarray  # (3,) in the head's frame
    wrap: float  # how far it reaches around what it shines on
    colour: np.ndarray  # (3,)


def shade(
    body: Figure,
    moment: Moment,
    face_N: np.ndarray,
    weight_N3: np.ndarray,
    back_N: np.ndarray,
    view: View,
) -> np.ndarray:
    """sRGB in [0, 1], (N, 3), of points given by triangle and barycentric weights.

    `back_N` says which triangles are seen from behind.
    """
    shared = shared_parts()
    colour = np.zeros((len(face_N), 3), np.float32)
    corner = shared.faces[face_N]
    material = shared.material[face_N]
    known = [body.paint, view.normal_V3, shared.lip, shared.lid]
    table = np.column_stack(known).astype(np.float32)
    # Each painter gets the points of its material alone, as painting skin is most of the work.
    for number, painter in enumerate(PAINTERS):
        chosen = np.flatnonzero(material == number)
        if not len(chosen):
            continue
        back = back_N[chosen]
        points = _points(
            table,
            corner[chosen],
            weight_N3[chosen],
            back,
            view.pixel,
            around=number == HAIR,
        )
        coat = painter(body.person, moment, points)
        colour[chosen] = _lit(body.person, coat, points.normal, back, view)
    return srgb(colour)


def _points(
    table_VC: np.ndarray,
    corner_N3: np.ndarray,
    weight_N3: np.ndarray,
    back_N: np.ndarray,
    pixel: float,
    around: bool,
) -> Surfel:
    """What the corners of triangles know, mixed by the weights.

    The second number of hair is an angle (`around`). Normals seen from behind (`back_N`) are turned.
    """
    values = []
    for k in range(3):
        value = table_VC[corner_N3[:, k]]
        value *= weight_N3[:, k, None]
        values.append(value)
    if around:
        angle_N3 = table_VC[corner_N3, 1]
        turn_N3 = _full_turns(angle_N3) * weight_N3
        for k in range(3):
            values[k][:, 1] += turn_N3[:, k]
    mixed = values[0] + values[1] + values[2]
    normal = mixed[:, 3:6]
    squared = np.einsum("nc,nc->n", normal, normal)
    length = np.sqrt(squared + 1e-12)
    sign = np.where(back_N, -1, 1)
    outwards = (sign / length).astype(np.float32)
    return Surfel(
        paint=mixed[:, :3],
        normal=normal * outwards[:, None],
        lip=mixed[:, 6],
        lid=mixed[:, 7],
        pixel=pixel,
    )


def _full_turns(angle_N3: np.ndarray) -> np.ndarray:
    """What makes the angles at the corners of a triangle neighbours: 2 pi or 0, (N, 3) float32."""
    # At the back of the head lies a seam, where an angle of 0 is one of 2 pi.
    seam = angle_N3.max(axis=1, keepdims=True) - np.pi
    turn = np.where(angle_N3 < seam, 2 * np.pi, 0)
    return turn.astype(np.float32)


def _lit(
    person: Person,
    coat: Coat,
    normal: np.ndarray,
    back_N: np.ndarray,
    view: View,
) -> np.ndarray:
    """Linear light (N, 3): ambient light from above, then key and fill light with their highlights."""
    light = _ambient(person, normal, view)
    shine = np.zeros(len(normal), np.float32)
    for lamp in _lights(person, view.room_33):
        light += _diffuse(lamp, normal)
        highlight = _highlight(lamp, normal, view) ** coat.sharpness
        shine += highlight * float(lamp.colour.mean())
    through = np.where(back_N, np.float32(BACK), np.float32(1.0))
    dim = through * coat.occlusion
    diffuse = coat.albedo * light * dim[:, None]
    glossy = coat.gloss * shine * dim
    return diffuse + glossy[:, None]


def _ambient(person: Person, normal: np.ndarray, view: View) -> np.ndarray:
    """Bluish light from all around, a little more from above."""
    up = view.room_33[:, 1].astype(np.float32)
    # The stronger the contrast of a person's light, the less of it comes from all around.
    level = 0.30 + 0.06 * (1 - person.trait["contrast"])
    amount = level + 0.10 * (normal @ up)
    return amount[:, None] * AMBIENT


def _diffuse(lamp: _Light, normal: np.ndarray) -> np.ndarray:
    """What reaches a matt surface from a lamp, (N, 3)."""
    facing = normal @ lamp.direction.astype(np.float32)
    # Red light goes deeper into skin and hair, so it wraps further around.
    red = lamp.wrap + 0.12
    blue = lamp.wrap - 0.04
    wraps = np.array([red, lamp.wrap, blue], np.float32)
    reach = facing[:, None] + wraps
    reach /= 1 + lamp.wrap
    colour = lamp.colour.astype(np.float32)
    return np.clip(reach, 0, None) * colour


def _highlight(lamp: _Light, normal: np.ndarray, view: View) -> np.ndarray:
    """1 where the normal lies half way between light and camera, falling around it (Blinn), (N,)."""
    half = lamp.direction + view.eye_3
    half = half / np.linalg.norm(half)
    cosine = normal @ half.astype(np.float32)
    return np.clip(cosine, 0, 1)


def _lights(person: Person, room_33: np.ndarray) -> list[_Light]:
    """Key light, and fill light from the other side, which is the weaker the stronger the contrast."""
    contrast = 0.55 + 0.5 * person.trait["contrast"]
    side = person.light[0]
    length = np.linalg.norm([side, 0.15, 0.8])
    opposite = np.array([-side, 0.15, 0.8]) / length
    key = _Light(
        direction=room_33 @ person.light,
        wrap=0.30,
        colour=contrast * WARM,
    )
    fill = _Light(
        direction=room_33 @ opposite,
        wrap=0.55,
        colour=(0.62 - 0.3 * contrast) * COOL,
    )
    return [key, fill]


def srgb(colour: np.ndarray) -> np.ndarray:
    """Linear light to sRGB in [0, 1] with soft highlights."""
    # Above 0.7 a curve without a kink leads to 1, so that highlights keep their shape.
    above = (colour - 0.7) / 0.3
    compressed = 0.7 + 0.3 * np.tanh(above)
    soft = np.where(colour < 0.7, colour, compressed)
    return np.clip(soft, 0, 1) ** (1 / 2.2)
