"""Whether the cache is worth it: a training step from the cache beside one that renders its pseudo views.

    python -m tests.benchmarks.worth [--json FILE]

Run in the folder of a project whose graph has run. The step that renders does what the official code does:
the frozen Psi_3d makes theta_p and theta_q of the driving frame where they are not substituted by it, the
frozen E_mot embeds the source and the driving image. Making the cache is the stage's own worker with PNGs
and tar. All times are CPU seconds of one thread, of one run.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from model.psi.motion_encoder import motion_crop
from pipeline.config.params import Params, load_params
from pipeline.engine.work_unit import WorkUnit
from pipeline.geometry.label import landmarks
from pipeline.render.views import ViewRenderer
from pipeline.store.samples import image_tensor
from pipeline.store.shards import decode_npy, write_shard
from pipeline.train.view_batches import Choice, PseudoMultiView
from tests.benchmarks.record import record
from tests.benchmarks.training_step import cpu_seconds, loader, training_step

DATA = Path("data")
INPUTS = ("ingest", "labels/vfhq.parquet", "pretrain/motion", "pretrain/perception", "psi3d")
FRAMES = 8  # of the cache, made at once
# Operations of the published sizes, GFLOP (the table of the floor in NOTES.md): tri-planes and background
# of a frame, rays and super-resolution.
PLANES = 390 + 87 + 18 + 364 + 310 + 293
VIEW = 13 + 198
PAPER_IMAGES, PAPER_BATCH, PAPER_VIEWS = 6_000_000, 32, 4


class InsideTheStep:
    """The frozen networks at work within a step."""

    def __init__(
        self,
        params: Params,
        data: PseudoMultiView,
        worker: ViewRenderer,
    ) -> None:
        self.size = params.train.batch
        self.data = data
        self.worker = worker

    @torch.inference_mode()
    def __call__(self, i: int) -> None:
        # The same draws as the loader's, so that as many views are substituted in both.
        chosen = self.data.choose(i, self.size)
        names = ["image.png", "label.npy", "cameras.npy"]
        fields = [self.data.index.read(choice.driving, names) for choice in chosen]
        sources = [self.data.index.read(choice.source, ["image.png"]) for choice in chosen]
        real = torch.stack([image_tensor(field["image.png"]) for field in fields])
        source = torch.stack([image_tensor(field["image.png"]) for field in sources])
        cameras = torch.stack([torch.from_numpy(decode_npy(field["cameras.npy"])) for field in fields])
        label = torch.stack([torch.from_numpy(decode_npy(field["label.npy"])) for field in fields])
        driving = self._views(chosen, real, cameras)
        self._embed(source, label, cameras[:, 0])
        of_driving = [choice.p for choice in chosen]
        self._embed(driving, label, cameras[range(len(chosen)), of_driving])

    def _embed(
        self,
        image: torch.Tensor,
        label: torch.Tensor,
        cameras: torch.Tensor,
    ) -> None:
        """The motion embedding of images, each seen by one camera."""
        points = landmarks(self.worker.flame, label, cameras[:, None])[:, 0]
        crop = motion_crop(image, points, self.worker.sizes.motion.input)
        self.worker.motion.embedding(crop)

    def _views(
        self,
        chosen: list[Choice],
        real: torch.Tensor,
        cameras: torch.Tensor,
    ) -> torch.Tensor:
        """The driving images, with pseudo views where they are chosen; the targets are rendered, too."""
        rendered = [k for k, choice in enumerate(chosen) if choice.p or choice.q]
        driving = real.clone()
        if not rendered:
            return driving
        psi3d = self.worker.psi3d
        planes = psi3d.planes(real[rendered], None, None, 0.0, cameras[rendered, 0])
        background = psi3d.background_feature(real[rendered])
        for name in ("p", "q"):
            wanted = []
            for place, k in enumerate(rendered):
                view = getattr(chosen[k], name)
                if view:
                    wanted.append((place, k, view))
            if not wanted:
                continue
            places, samples, views = (list(column) for column in zip(*wanted, strict=True))
            seen_from = cameras[samples, views][:, None]
            image = psi3d.render(planes[places], background[places], seen_from).image
            if name == "p":
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
    batch = params.train.batch
    train = training_step(params, DATA / "pretrain/perception")
    inside = InsideTheStep(params, data, worker)

    keys = data.index.columns(["key"])["key"].to_pylist()
    with tempfile.TemporaryDirectory(dir=".") as folder:

        def make(i: int) -> None:
            # With PNGs and the tar, which are a part of the price.
            unit = WorkUnit("views", keys[FRAMES * i : FRAMES * (i + 1)])
            write_shard(Path(folder) / "views.tar", worker(unit)[0])

        a_frame = cpu_seconds(make, 5, warm=1) / FRAMES
    reading = cpu_seconds(lambda i: data.batch(i, batch), 40)
    rendering = cpu_seconds(inside, 15)
    training = cpu_seconds(lambda i: train(i, data.batch(i, batch)), 15) - reading
    # The cache is paid for once, and each step saves rendering for reading.
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
    cached, rendered = training + reading, training + rendering
    whole = frames * a_frame
    print(f"scale {params.scale}, CPU seconds of one thread, steps of {batch}")
    print(f"  a step from the cache           {cached:7.4f}  (reading {reading:.4f})")
    print(f"  a step that renders its views   {rendered:7.4f}  (rendering {rendering:.4f})")
    print(f"    which is {rendered / cached:.2f} times as long")
    print(f"  making the cache                {a_frame:7.4f}  a frame, {whole:.0f} for {frames:,} frames")
    print(f"  the cache has paid for itself after {steps:,.0f} steps")
    print(f"    a run at this scale has {params.train.images // batch:,}")
    print_published(params)
    record(arguments.json, "worth", results)


def print_published(params: Params) -> None:
    """The same for the published sizes, calculated from their operations."""
    p, q = params.train.substitute_p, params.train.substitute_q
    # Planes are needed unless both views are substituted, which happens with the probability p q.
    sample = (1 - p * q) * PLANES + (2 - p - q) * VIEW
    frame = PLANES + (1 + PAPER_VIEWS) * VIEW
    # A training step is at least a forward and a backward pass: three forwards.
    trained = 3 * (PLANES + VIEW)
    print("published sizes, calculated, GFLOP")
    print(f"  {sample:,.0f} a sample inside the step, {frame:,} a frame of the cache")
    print(f"  a sample trains for at least {trained:,}")
    print(f"    so a step that renders takes at most {1 + sample / trained:.2f} times as long")
    for count in (50, 200):
        images = 10_000 * count * frame / sample
        paid = f"{images / 1e6:.2f} M images, {images / PAPER_BATCH:,.0f} steps of {PAPER_BATCH}"
        print(f"  10,000 clips of {count} frames: paid for after {paid}")
    print(f"    a run sees {PAPER_IMAGES / 1e6:.0f} M images")


if __name__ == "__main__":
    main()
