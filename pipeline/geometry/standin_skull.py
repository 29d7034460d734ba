"""The skull of the stand-in head: a star-shaped surface through chosen points (world units, neck joint at 0).

A surface is star-shaped when every direction from the origin meets it once, so that it is a radius for each
direction. Proportions were chosen so that the landmarks fall where the official framing has them (facts 5.2).
"""

import numpy as np
from scipy.interpolate import RBFInterpolator

from pipeline.geometry.mesh import mirror, unit

# Landmarks 0 to 8, 17 to 21 and 27 to 33 of the 68 in iBUG's order, a row each; the other side is their
# mirror image.
CONTOUR = np.loadtxt(
    """
    -0.2175   0.0564  0.0867
    -0.2155   0.0145  0.105
    -0.2115  -0.027   0.124
    -0.202   -0.069   0.148
    -0.190   -0.113   0.173
    -0.1495  -0.1685  0.2375
    -0.1208  -0.1853  0.2669
    -0.0670  -0.2105  0.3130
     0.0     -0.224   0.332
    """.splitlines()
)
BROW = np.loadtxt(
    """
    -0.1656   0.1256  0.225
    -0.1485   0.1450  0.238
    -0.1195   0.1535  0.260
    -0.084    0.1550  0.281
    -0.043    0.150   0.299
    """.splitlines()
)
NOSE = np.loadtxt(
    """
     0.0      0.103   0.300
     0.0      0.065   0.325
     0.0      0.029   0.356
     0.0      0.009   0.373
    -0.045   -0.023   0.316
    -0.023   -0.029   0.331
     0.0     -0.034   0.340
    """.splitlines()
)
# More points that the surface passes through, at x >= 0 and mirrored: flesh between the landmarks.
FLESH = np.loadtxt(
    """
     0.2005  -0.0865  0.150
     0.0575  -0.217   0.318
     0.0395   0.142   0.299
     0.1365   0.144   0.2465
     0.164    0.113   0.226
     0.0      0.145   0.305
     0.0      0.20    0.302
     0.0      0.27    0.265
     0.10     0.22    0.262
     0.17     0.19    0.19
     0.222    0.13    0.09
     0.022    0.068   0.305
     0.024    0.034   0.325
     0.024    0.008   0.349
     0.044    0.000   0.325
     0.052   -0.012   0.310
     0.062    0.004   0.285
     0.040    0.040   0.283
     0.033    0.075   0.282
     0.030   -0.014   0.345
     0.078   -0.03    0.279
     0.10     0.035   0.268
     0.135    0.02    0.247
     0.17     0.055   0.205
     0.185    0.0     0.18
     0.13    -0.06    0.255
     0.165   -0.09    0.205
     0.105   -0.12    0.275
     0.0     -0.148   0.322
     0.05    -0.155   0.315
     0.0     -0.188   0.342
     0.05    -0.19    0.327
     0.0     -0.048   0.333
     0.018   -0.05    0.333
     0.185    0.10    0.185
     0.0     -0.238   0.27
     0.10    -0.212   0.22
     0.16    -0.165   0.15
     0.19    -0.11    0.08
     0.0     -0.215   0.12
     0.2185   0.098   0.068
     0.168   -0.150   0.208
     0.092   -0.202   0.296
     0.036   -0.221   0.327
     0.180    0.134   0.206
    """.splitlines()
)


class Surface:
    """Radius of the skull for any direction.

    Two ellipsoids are pulled onto the chosen points by a thin-plate spline.
    """

    def __init__(self) -> None:
        anchors = _anchors()
        radius = np.linalg.norm(anchors, axis=1)
        towards = anchors / radius[:, None]
        # On top and at the back, where there is no point, the spline is held to the ellipsoids.
        back = _back()
        residual = np.concatenate([radius - _ellipsoids(towards), np.zeros(len(back))])
        self.spline = RBFInterpolator(
            np.concatenate([towards, back]),
            residual,
            kernel="thin_plate_spline",
            smoothing=1e-4,
        )

    def __call__(self, directions_N3: np.ndarray) -> np.ndarray:
        """Points on the surface (N, 3) for unit directions."""
        radius = _ellipsoids(directions_N3) + self.spline(directions_N3)
        return directions_N3 * radius[:, None]

    def at(self, xy_N2: np.ndarray) -> np.ndarray:
        """Points on the front of the surface (N, 3) for given x and y."""
        points = np.column_stack([xy_N2, np.full(len(xy_N2), 0.3)])
        # A fixed point: z is stretched by how far the surface is beyond the guess, seen from the origin.
        for _ in range(8):
            hit = self(unit(points))
            points[:, 2] *= np.linalg.norm(hit, axis=1) / np.linalg.norm(points, axis=1)
        return points


def _anchors() -> np.ndarray:
    half = np.concatenate([CONTOUR, BROW, NOSE, FLESH])
    both = np.concatenate([half, mirror(half)])
    # A point in the middle is its own mirror image, and a spline cannot have two values at one place.
    _, first = np.unique(
        np.round(both, 6),
        axis=0,
        return_index=True,
    )
    return both[first]


def _back() -> np.ndarray:
    corners = np.meshgrid(
        (-1, -0.5, 0, 0.5, 1),
        (-0.6, 0, 0.6, 1.2),
        (-1.0, -0.3),
        indexing="ij",
    )
    sides = np.stack(corners, axis=-1).reshape(-1, 3)
    top = [[0, 1, 0], [0, 1, 0.4]]
    return unit(np.concatenate([sides, top]))


def _ellipsoids(directions_N3: np.ndarray) -> np.ndarray:
    """The radius of cranium and face, blended by a high norm: almost the larger of the two, but smooth."""
    cranium = _ellipsoid_radius(
        directions_N3,
        centre=(0.0, 0.125, -0.025),
        radii=(0.224, 0.262, 0.28),
    )
    face = _ellipsoid_radius(
        directions_N3,
        centre=(0.0, -0.04, 0.13),
        radii=(0.188, 0.192, 0.19),
    )
    return (cranium**16 + face**16) ** (1 / 16)


def _ellipsoid_radius(
    directions_N3: np.ndarray,
    centre: tuple,
    radii: tuple,
) -> np.ndarray:
    """Distance from 0, which lies inside, to the slightly boxy ellipsoid around `centre`."""
    scaled = directions_N3 / radii
    offset = -np.divide(centre, radii)
    # The larger root of |radius * scaled + offset|^2 = 1.
    a = (scaled**2).sum(1)
    b = scaled @ offset
    c = offset @ offset - 1.0
    radius = (-b + np.sqrt(b * b - a * c)) / a
    x, y, z = ((scaled * radius[:, None] + offset) ** 2).T
    return radius * (1 + 0.20 * (x * y + y * z + z * x))
