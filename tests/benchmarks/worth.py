"""Whether the cache is worth it: a training step of Psi from it beside one that renders its views itself.

    python -m tests.benchmarks.worth [--json FILE]

Run in the folder of a project whose graph has run. The step that renders does what the official code does:
the frozen Psi_3d makes theta_p and theta_q of the driving frame where they are not substituted by it, and the
frozen E_mot embeds the source and the driving image. Making the cache is the stage's own worker with PNGs and
tar. All times are CPU seconds of one thread, measured in one run.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from model.psi.motion_encoder import motion_crop
from pipeline.config.params import Params, load_params
from pipeline.core.files import write_json
from pipeline.engine.work_unit import WorkUnit
from pipeline.geometry.label import landmarks
from pipeline.render.views import ViewRenderer
from pipeline.store.samples import image_tensor
from pipeline.store.shards import decode_npy, write_shard
from pipeline.train.view_batches import Choice, PseudoMultiView
from tests.benchmarks.training_step import cpu_seconds, loader, training_step

DATA = Path("data")
INPUTS = ("ingest", "labels/vfhq.parquet", "pretrain/motion", "pretrain/perception", "psi3d")
FRAMES = 8  # of the cache, made at once
# Operations of the published sizes, GFLOP (the table of the floor in NOTES.md): first tri-planes and
# background of a frame, then rays and super-resolution of a view.
PLANES, VIEW = 390 + 87 + 18 + 364 + 310 + 293, 13 + 198
PAPER_IMAGES, PAPER_BATCH, PAPER_VIEWS = 6_000_000, 32, 4


class InsideTheStep:
    """The frozen networks at work within a step."""

    def __init__(self, params: Params, data: PseudoMultiView, worker: ViewRenderer) -> None:
        self.size, self.data, self.worker = params.train.batch, data, worker

    @torch.inference_mode()
    def __call__(self, i: int) -> None:
        chosen = self.data.choose(i, self.size)
        fields = [
            self.data.index.read(choice.driving, ["image.png", "label.npy", "cameras.npy"])
            for choice in chosen
        ]
        real = torch.stack([image_tensor(field["image.png"]) for field in fields])
        cameras = torch.stack([torch.from_numpy(decode_npy(field["cameras.npy"])) for field in fields])
        label = torch.stack([torch.from_numpy(decode_npy(field["label.npy"])) for field in fields])
        driving = self._views(chosen, real, cameras)
        source = torch.stack(
            [
                image_tensor(self.data.index.read(choice.source, ["image.png"])["image.png"])
                for choice in chosen
            ]
        )
        for image, rows in ((source, [0] * len(chosen)), (driving, [choice.p for choice in chosen])):
            points = landmarks(self.worker.flame, label, cameras[range(len(rows)), rows][:, None])[:, 0]
            self.worker.motion.embedding(motion_crop(image, points, self.worker.sizes.motion.input))

    def _views(self, chosen: list[Choice], real: torch.Tensor, cameras: torch.Tensor) -> torch.Tensor:
        """The driving images, with pseudo views where they are chosen; the targets are rendered, too."""
        rendered, driving = [k for k, choice in enumerate(chosen) if choice.p or choice.q], real.clone()
        if not rendered:
            return driving
        psi3d = self.worker.psi3d
        planes, background = (
            psi3d.planes(real[rendered], None, None, motion_scale=0.0),
            psi3d.background_feature(real[rendered]),
        )
        for is_driving, rows in (
            (True, [choice.p for choice in chosen]),
            (False, [choice.q for choice in chosen]),
        ):
            wanted = [(place, k, rows[k]) for place, k in enumerate(rendered) if rows[k]]
            if wanted:
                places, samples, views = (list(column) for column in zip(*wanted, strict=True))
                image = psi3d.render(
                    planes[places], background[places], cameras[samples, views][:, None]
                ).image
                if is_driving:
                    driving[samples] = image.clamp(-1, 1)
        return driving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    params = load_params()
    torch.set_num_threads(1)
    data = loader(params, DATA / "views")
    worker = ViewRenderer(params, *(DATA / name for name in INPUTS))
    train, batch = training_step(params, DATA / "pretrain/perception"), params.train.batch
    inside = InsideTheStep(params, data, worker)

    keys = data.index.columns(["key"])["key"].to_pylist()
    with tempfile.TemporaryDirectory(dir=".") as folder:

        def make(i: int) -> None:
            unit = WorkUnit("views", keys[FRAMES * i : FRAMES * (i + 1)])
            write_shard(Path(folder) / "views.tar", worker(unit)[0])

        a_frame = cpu_seconds(make, 5, warm=1) / FRAMES
    reading = cpu_seconds(lambda i: data.batch(i, batch), 40)
    rendering = cpu_seconds(inside, 15)
    training = cpu_seconds(lambda i: train(i, data.batch(i, batch)), 15) - reading
    frames = len(data.index)
    steps = frames * a_frame / (rendering - reading)
    results = {
        "training_step": training,
        "reading_a_batch": reading,
        "rendering_a_batch": rendering,
        "a_frame": a_frame,
        "frames": frames,
        "steps": steps,
    }
    print(f"scale {params.scale}, CPU seconds of one thread, steps of {batch}")
    print(f"  a step from the cache           {training + reading:7.4f}  (reading {reading:.4f})")
    times = (training + rendering) / (training + reading)
    slower = f"(rendering {rendering:.4f}), {times:.2f} times"
    print(f"  a step that renders its views   {training + rendering:7.4f}  {slower}")
    whole = f"{frames * a_frame:.0f} for {frames:,} frames"
    print(f"  making the cache                {a_frame:7.4f}  a frame, {whole}")
    run = f"a run at this scale has {params.train.images // batch:,}"
    print(f"  the cache has paid for itself after {steps:,.0f} steps; {run}")
    section = params.train
    # Planes are needed unless both images are the real frame, a view for each that is not.
    planes = 1 - section.substitute_p * section.substitute_q
    views = 2 - section.substitute_p - section.substitute_q
    sample, frame = planes * PLANES + views * VIEW, PLANES + (1 + PAPER_VIEWS) * VIEW
    cached = f"{frame:,} a frame of the cache"
    print(f"published sizes, calculated: {sample:,.0f} GFLOP a sample inside the step, {cached};")
    trained = 3 * (PLANES + VIEW)
    longest = f"so a step that renders takes at most {1 + sample / trained:.2f} times as long"
    print(f"  a sample trains for at least {trained:,}, {longest}")
    for count in (50, 200):
        images = 10_000 * count * frame / sample
        after = (
            f"paid for after {images / 1e6:.2f} M images, {images / PAPER_BATCH:,.0f} steps of {PAPER_BATCH}"
        )
        print(f"  10,000 clips of {count} frames: {after}; a run sees {PAPER_IMAGES / 1e6:.0f} M")
    if arguments.json:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
