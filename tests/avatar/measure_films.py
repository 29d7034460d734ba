"""Absolute beside relative motion, across identities: `python -m tests.avatar.measure_films` in a generated
run.

Every test clip drives the first frame of the one before it. ID is the cosine of the run's own recognition
features of result and source, AED the mean difference of the expression that the run's own estimator reads in
result and driver; the correlations are those of pipeline/avatar/measures.py, over all clips.
"""

from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from model.head.flame import Flame
from pipeline.avatar.animator import Weights, image_batch
from pipeline.avatar.film_maker import cameras_of
from pipeline.avatar.relative import REFERENCES, reference_frame, relative_motion
from pipeline.avatar.studio import Studio
from pipeline.config.params import load_params
from pipeline.core import paths
from pipeline.evaluate.instruments import FaceReader
from pipeline.evaluate.metrics import aed, within_clips
from pipeline.geometry.head_model import load
from pipeline.geometry.label import FIVE_POINTS, landmarks
from pipeline.networks.judges import Judges


def first_frame(clip: Path, folder: Path) -> Path:
    photo = folder / f"{clip.stem}.png"
    with av.open(str(clip)) as container:
        Image.fromarray(next(container.decode(video=0)).to_ndarray(format="rgb24")).save(photo)
    return photo


@torch.inference_mode()
def main() -> None:
    params, folder = load_params(), Path(".cache/psi4d/measure")
    folder.mkdir(parents=True, exist_ok=True)
    studio, judges, reader = Studio(params, Weights()), Judges.load(paths.PERCEPTION), FaceReader()
    flame = Flame(load(params.flame.model))
    clips = sorted((paths.GENERATED / "clips").glob("test-*.mp4"))
    drivers = {clip: studio.driver(clip) for clip in clips}
    avatars = {clip: studio.avatar(first_frame(clip, folder)) for clip in clips}
    size = studio.animator.sizes.image
    for kind in ("", *REFERENCES):
        found: dict[str, list] = {"id": [], "aed": [], "clips": []}
        read: dict[str, list] = {}
        for source, clip in zip(clips, [*clips[1:], clips[0]], strict=True):
            avatar, (driver, motion) = avatars[source], drivers[clip]
            if kind:
                rest = reference_frame(driver, kind, params.flame.model)
                motion = relative_motion(avatar.motion_1M, motion, rest)
            cameras = cameras_of("driving", driver)
            results = image_batch(np.stack(list(studio.animator.pictures(avatar, motion, cameras))))
            faces = image_batch(np.stack(list(driver.faces(size))))
            # Where the source's own head is seen from the driver's cameras.
            label = torch.from_numpy(avatar.portrait.label_437)[None]
            points = landmarks(flame, label, torch.from_numpy(cameras)[None])[0, :, list(FIVE_POINTS)]
            own = torch.from_numpy(avatar.portrait.points_702)[None, list(FIVE_POINTS)]
            picture = image_batch(avatar.portrait.picture_SS3[None])
            alike = judges.identity(results, points) @ judges.identity(picture, own)[0]
            expressions = [judges.expression_pose(images) for images in (results, faces)]
            found["id"] += alike.tolist()
            found["aed"] += aed(*expressions).tolist()
            found["clips"] += [clip.stem] * len(results)
            wanted, seen = reader(faces), reader(results)
            for name in FaceReader.NAMES:
                read.setdefault(name, []).append((wanted[name], seen[name]))
        line = f"{kind or 'absolute':9} ID {np.mean(found['id']):.4f}  AED {np.mean(found['aed']):.4f}"
        for name, pairs in read.items():
            wanted, seen = (np.concatenate(column) for column in zip(*pairs, strict=True))
            line += f"  {name} {within_clips(wanted, seen, found['clips']):.3f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
