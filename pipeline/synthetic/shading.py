"""Light on a generated person: what colour a visible point has in the picture."""

from dataclasses import dataclass

import numpy as np

from pipeline.synthetic.brushes import Coat, Surfel
from pipeline.synthetic.paint import PAINTERS
from pipeline.synthetic.person import Person
from pipeline.synthetic.scene import HAIR, Figure, Moment, shared_parts

BACK = 0.55  # how much light gets through to the back of a surface


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
    table = np.column_stack([body.paint, view.normal_V3, shared.lip, shared.lid]).astype(np.float32)
    # Each painter gets the points of its material alone, as painting skin is most of the work.
    for number, painter in enumerate(PAINTERS):
        chosen = np.flatnonzero(material == number)
        if len(chosen):
            turned = back_N[chosen]
            points = _points(
                table,
                corner[chosen],
                weight_N3[chosen],
                turned,
                view.pixel,
                number == HAIR,
            )
            coat = painter(body.person, moment, points)
            colour[chosen] = _lit(body.person, coat, points.normal, turned, view)
    return srgb(colour)


def _points(
    table_VC: np.ndarray,
    corner_N3: np.ndarray,
    weight_N3: np.ndarray,
    turned_N: np.ndarray,
    pixel: float,
    around: bool,
) -> Surfel:
    """What the corners of triangles know, mixed by the weights.

    The second number of hair is an angle (`around`).
    """
    values = []
    for k in range(3):
        values.append(table_VC[corner_N3[:, k]] * weight_N3[:, k, None])
    if around:
        # The seam at the back of the head: an angle of 0 there is one of 2 pi.
        angles = [table_VC[corner_N3[:, k], 1] for k in range(3)]
        seam = np.maximum(np.maximum(angles[0], angles[1]), angles[2]) - np.pi
        for k in range(3):
            full_turn = np.where(angles[k] < seam, 2 * np.pi, 0).astype(np.float32)
            values[k][:, 1] += full_turn * weight_N3[:, k]
    mixed = values[0] + values[1] + values[2]
    normal = mixed[:, 3:6]
    length = np.sqrt(np.einsum("nc,nc->n", normal, normal) + 1e-12)
    outwards = (np.where(turned_N, -1, 1) / length).astype(np.float32)
    return Surfel(
        paint=mixed[:, :3],
        normal=normal * outwards[:, None],
        lip=mixed[:, 6],
        lid=mixed[:, 7],
        pixel=pixel,
    )


def _lit(
    person: Person,
    coat: Coat,
    normal: np.ndarray,
    turned_N: np.ndarray,
    view: View,
) -> np.ndarray:
    """Linear light (N, 3): ambient light from above, then key and fill light with their highlights."""
    up = view.room_33[:, 1].astype(np.float32)
    ambient = 0.30 + 0.06 * (1 - person.trait["contrast"])
    bluish = np.array([0.95, 0.98, 1.04], np.float32)
    light = (ambient + 0.10 * (normal @ up))[:, None] * bluish
    shine = np.zeros(len(normal), np.float32)
    for lamp in _lights(person, view.room_33):
        facing = normal @ lamp.direction.astype(np.float32)
        # Red light goes deeper into skin and hair, so it wraps further around.
        wraps = np.array([lamp.wrap + 0.12, lamp.wrap, lamp.wrap - 0.04], np.float32)
        reach = np.clip((facing[:, None] + wraps) / (1 + lamp.wrap), 0, None)
        light += reach * lamp.colour.astype(np.float32)
        # A highlight where the normal lies half way between light and camera (Blinn).
        half = lamp.direction + view.eye_3
        half = (half / np.linalg.norm(half)).astype(np.float32)
        shine += np.clip(normal @ half, 0, 1) ** coat.sharpness * float(lamp.colour.mean())
    dim = np.where(turned_N, np.float32(BACK), np.float32(1.0)) * coat.occlusion
    diffuse = coat.albedo * light * dim[:, None]
    return diffuse + (coat.gloss * shine * dim)[:, None]


def _lights(person: Person, room_33: np.ndarray) -> list[_Light]:
    """Key light, and fill light from the other side, which is the weaker the stronger the contrast."""
    contrast = 0.55 + 0.5 * person.trait["contrast"]
    length = np.linalg.norm([person.light[0], 0.15, 0.8])
    opposite = np.array([-person.light[0], 0.15, 0.8]) / length
    key = _Light(
        direction=room_33 @ person.light,
        wrap=0.30,
        colour=contrast * np.array([1.0, 0.96, 0.90]),
    )
    fill = _Light(
        direction=room_33 @ opposite,
        wrap=0.55,
        colour=(0.62 - 0.3 * contrast) * np.array([0.88, 0.94, 1.0]),
    )
    return [key, fill]


def srgb(colour: np.ndarray) -> np.ndarray:
    """Linear light to sRGB in [0, 1] with soft highlights."""
    compressed = 0.7 + 0.3 * np.tanh((colour - 0.7) / 0.3)
    return np.clip(np.where(colour < 0.7, colour, compressed), 0, 1) ** (1 / 2.2)
