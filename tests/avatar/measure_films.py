"""Films of generated test people, measured: `python -m tests.avatar.measure_films` in a run of the graph.

Test people drive the next one's photo for five seconds at 25 frames a second, which their clips in the run do
not have. The numbers are those of `psi4d animate --measure`, averaged over the films, for absolute and for
relative motion. A still driver sits before a camera whose pixels are noisy: what changes in the size of its
head is noise of detection.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.avatar.animate import animate
from pipeline.avatar.animator import Weights
from pipeline.avatar.film_maker import Look
from pipeline.config.params import load_params
from pipeline.core.films import encode_mp4
from pipeline.core.seeds import rng
from pipeline.evaluate.film_measures import table
from pipeline.synthetic.animation import Shot, clip
from pipeline.synthetic.generator import latent
from pipeline.synthetic.person import person
from pipeline.synthetic.raster import render
from pipeline.synthetic.scene import Figure, figure

FOLDER = Path(".cache/psi4d/measure")
RATE, SECONDS, SIDE = 25, 5, 256
# Levels of the deviation of a camera's noise in dim light.
NOISE = 3.0
LOOKS = {
    "absolute": Look(measure=True),
    "relative, first": Look(measure=True, relative="first"),
    "relative, neutral": Look(measure=True, relative="neutral"),
}


def draw(body: Figure, shots: Sequence[Shot], noise: float = 0.0) -> Iterator[np.ndarray]:
    """A picture of each shot, uint8 (SIDE, SIDE, 3)."""
    random = np.random.default_rng(0)
    for shot in shots:
        picture = render(body, shot.moment, shot.camera, SIDE).rgb
        noisy = picture + random.normal(0, noise, picture.shape)
        yield noisy.round().clip(0, 255).astype(np.uint8)


def write_person(number: int, seed: int) -> tuple[Path, Path, Path]:
    """A photo of a test person, and two videos: it talks, and it sits still."""
    name = f"test-{number:04d}"
    body = figure(person(latent(seed, f"clip-{name}")))
    shots = clip(rng(seed, "clip", f"{name}.mp4"), RATE * SECONDS, RATE)
    photo, talking, still = (FOLDER / f"{name}{suffix}" for suffix in (".png", ".mp4", "-still.mp4"))
    FOLDER.mkdir(parents=True, exist_ok=True)
    talking.write_bytes(encode_mp4(draw(body, shots), RATE))
    still.write_bytes(encode_mp4(draw(body, shots[:1] * len(shots), NOISE), RATE))
    Image.fromarray(next(draw(body, shots))).save(photo)
    return photo, talking, still


def mean_of(rows: Sequence[Any]) -> Any:
    """The mean of each number in dictionaries of one form, without those that are None."""
    if isinstance(rows[0], Mapping):
        means = {}
        for name in rows[0]:
            means[name] = mean_of([row[name] for row in rows])
        return means
    # A film without a face has None there.
    known = [row for row in rows if row is not None]
    return float(np.mean(known)) if known else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    # Each person more costs about a minute for every look.
    parser.add_argument("--people", type=int, default=2)
    parser.add_argument("--smooth", type=float, nargs="*", default=[0.0, 0.12, 0.5])
    options = parser.parse_args()
    params = load_params()
    people = [write_person(number, params.seed) for number in range(options.people)]
    photos, talking, still = zip(*people, strict=True)

    def measured(drivers: Sequence[Path], look: Look) -> dict[str, Any]:
        rows = []
        # Each drives the next person, so that a result with the driver's face would be seen.
        next_ones = [*drivers[1:], drivers[0]]
        for photo, driver in zip(photos, next_ones, strict=True):
            film = FOLDER / "film.mp4"
            [made] = animate(
                params,
                Weights(),
                [photo],
                [driver],
                film,
                look,
            )
            rows.append(made.measures)
        return mean_of(rows)

    for name, look in LOOKS.items():
        found = measured(talking, look)
        print(f"{name}\n{table(found)}", flush=True)
    for seconds in options.smooth:
        look = replace(LOOKS["absolute"], smooth=seconds)
        for kind, drivers in (("talking", talking), ("still", still)):
            found = measured(drivers, look)
            steadiness = {name: found[name] for name in ("fast_motion", "size_change", "background")}
            print(f"{kind}, crop smoothed over {seconds:g} s\n{table(steadiness)}", flush=True)


if __name__ == "__main__":
    main()
