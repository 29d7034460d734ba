"""The moving picture of the README: `python -m tests.avatar.draw_readme OUT.webp` in a run of the graph.

A generated test person drives another one's photo, which is turned to both sides at the same time.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.avatar.animator import Weights
from pipeline.avatar.studio import Studio
from pipeline.config.params import load_params
from pipeline.core.pictures import beside, tile
from pipeline.geometry import camera_path
from pipeline.geometry.label import Label
from tests.avatar.measure_films import RATE, write_person

SIDE = 160  # pixels of a picture
EVERY = 2  # frames of the driver that are shown
QUALITY = 70  # of WebP


def main() -> None:
    params = load_params()
    studio = Studio(params, Weights())
    photo, _, _ = write_person(1, params.seed)
    _, talking, _ = write_person(0, params.seed)
    avatar = studio.avatar(photo)
    driver, motion = studio.driver(talking)
    results = studio.animator.pictures(avatar, motion, driver.labels_N437[:, Label.CAMERA])
    around = studio.animator.pictures(avatar, motion, camera_path.orbit(len(driver)))
    source = tile(avatar.portrait.preview_PP3, SIDE)
    frames = []
    for face, result, turned in zip(driver.faces(SIDE), results, around, strict=True):
        parts = [source, face, tile(result, SIDE), tile(turned, SIDE)]
        joined = beside(parts, ["photo", "driver", "result", "turned"])
        frames.append(Image.fromarray(np.ascontiguousarray(joined)))
    shown = frames[::EVERY]
    shown[0].save(
        Path(sys.argv[1]),
        save_all=True,
        append_images=shown[1:],
        duration=1000 * EVERY // RATE,
        loop=0,
        quality=QUALITY,
    )


if __name__ == "__main__":
    main()
