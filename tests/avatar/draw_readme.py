"""The moving pictures at the top of the README: `python -m tests.avatar.draw_readme` in a finished run.

A generated test person drives another one's photo, which is turned to both sides at the same time, and that
photo's mesh turns around once. Both are animated WebP below 1 MB, metrics/avatar.webp and metrics/mesh.webp.
"""

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import trimesh
from PIL import Image
from scipy.spatial.transform import Rotation

from pipeline.avatar.animator import Weights
from pipeline.avatar.mesh import mesh_of, vertex_colours
from pipeline.avatar.studio import Studio
from pipeline.config.params import load_params
from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes
from pipeline.core.pictures import beside, tile
from pipeline.core.readable import readable_bytes
from pipeline.geometry import camera_path
from pipeline.geometry.label import Label
from tests.avatar.measure_films import RATE, write_person

SIDE = 160  # pixels of a picture
EVERY = 2  # frames of the driver that are shown
QUALITIES = (80, 60, 40, 20)  # of WebP
LIMIT = 900_000  # bytes
# Of the mesh: pictures of a turn, how long each is shown, points that are drawn, and how many pixels of the
# drawing one of the picture has a side.
TURNS, MILLISECONDS = 48, 80
POINTS, FINER = 1_000_000, 2
WIDTH = 0.34  # metres that a picture of the mesh shows
# To the light, in the frame of the viewer, and what it adds to what is there without it.
LIGHT, DIRECT, AMBIENT = np.array([0.3, 0.4, 0.87]), 0.8, 0.25
PAPER = 255


def film(studio: Studio, photo: Path, driving: Path) -> list[np.ndarray]:
    """Photo, driver, result, and the result from a camera that goes around."""
    avatar = studio.avatar(photo)
    driver, motion = studio.driver(driving)
    results = studio.animator.pictures(avatar, motion, driver.labels_N437[:, Label.CAMERA])
    around = studio.animator.pictures(avatar, motion, camera_path.orbit(len(driver)))
    source = tile(avatar.portrait.preview_PP3, SIDE)
    pictures = []
    for face, result, turned in zip(driver.faces(SIDE), results, around, strict=True):
        parts = [source, face, tile(result, SIDE), tile(turned, SIDE)]
        pictures.append(beside(parts, ["photo", "driver", "result", "turned"]))
    return pictures[::EVERY]


def turning(mesh: trimesh.Trimesh) -> Iterator[np.ndarray]:
    """The mesh on a turntable: in its own colours, and grey beside it for its shape."""
    points, rows = mesh.sample(POINTS, return_index=True, seed=0)
    normals = mesh.face_normals[rows]
    corners = vertex_colours(mesh)[mesh.faces[rows]]
    colours = corners.mean(axis=1)
    grey = np.full_like(colours, 200.0)
    for yaw in np.linspace(0, 360, TURNS, endpoint=False):
        turn = Rotation.from_euler("y", yaw, degrees=True)
        places, facing = turn.apply(points), turn.apply(normals)
        light = AMBIENT + DIRECT * (facing @ LIGHT).clip(0, 1)
        parts = [_splat(places, paint * light[:, None]) for paint in (colours, grey)]
        yield beside(parts, ["mesh", "shape"])


def _splat(points_P3: np.ndarray, colours_P3: np.ndarray) -> np.ndarray:
    """Points as a viewer in front sees them, uint8 (SIDE, SIDE, 3)."""
    side = FINER * SIDE
    across, up = points_P3[:, 0] / WIDTH, points_P3[:, 1] / WIDTH
    columns = ((0.5 + across) * side).astype(int).clip(0, side - 1)
    rows = ((0.5 - up) * side).astype(int).clip(0, side - 1)
    # The last one that is written to a pixel is the nearest one.
    order = np.argsort(points_P3[:, 2], kind="stable")
    drawn = np.full((side, side, 3), PAPER, np.uint8)
    drawn[rows[order], columns[order]] = colours_P3[order].clip(0, 255)
    # A pixel that no point has hit takes what is around it.
    whole = cv2.medianBlur(drawn, 3)
    return cv2.resize(whole, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def write_webp(path: Path, pictures: Sequence[np.ndarray], milliseconds: int) -> None:
    """Write an animation that repeats, with the best quality that stays below LIMIT."""
    frames = [Image.fromarray(np.ascontiguousarray(picture)) for picture in pictures]
    for quality in QUALITIES:
        sink = io.BytesIO()
        frames[0].save(
            sink,
            format="webp",
            save_all=True,
            append_images=frames[1:],
            duration=milliseconds,
            loop=0,
            quality=quality,
        )
        if sink.tell() < LIMIT:
            break
    write_bytes(path, sink.getvalue())
    print(f"{path}: {len(frames)} pictures, quality {quality}, {readable_bytes(sink.tell())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("metrics"), help="folder")
    parser.add_argument("--photo", type=int, default=4, help="number of the test person who is shown")
    parser.add_argument("--driver", type=int, default=0, help="number of the test person who drives")
    options = parser.parse_args()
    params = load_params()
    try:
        studio = Studio(params, Weights())
        photo, _, _ = write_person(options.photo, params.seed)
        _, talking, _ = write_person(options.driver, params.seed)
        write_webp(options.out / "avatar.webp", film(studio, photo, talking), 1000 * EVERY // RATE)
        mesh = mesh_of(studio, photo, None, 0)
        write_webp(options.out / "mesh.webp", list(turning(mesh)), MILLISECONDS)
    except UserError as error:
        sys.exit(f"draw_readme: {error}")


if __name__ == "__main__":
    main()
