"""Stage pretrain, item genhead: GenHead at the scale of the generated heads (paper section 3.2, facts 3).

The published GenHead is a GAN, as the latent code of a photograph is not known. Of a generated portrait
latent code, label, camera, mask and depth are known, so that GenHead can learn by reconstruction, in
minutes: each portrait is to come out of its person's code and its own label.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.genhead import GenHead, HeadState
from model.head.flame import Flame
from model.volume.renderer import Rendering, compose
from pipeline.config.params import Params
from pipeline.core.batches import take
from pipeline.core.device import choose_device, to_device
from pipeline.core.files import write_json
from pipeline.core.pictures import save_grid, to_uint8
from pipeline.core.seeds import derive_seed, rng, torch_rng
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.scratch import scratch_folder
from pipeline.geometry import head_model
from pipeline.geometry.label import Label
from pipeline.networks.weights import save_weights
from pipeline.pretrain.portraits import Portraits, load_portraits
from pipeline.train import losses
from pipeline.train.distributed import only_first
from pipeline.train.image_terms import shrink
from pipeline.train.loop import Run, forget, train
from pipeline.train.schedule import set_rates
from pipeline.train.sparse_rays import SparseRays, rays_of_step
from pipeline.train.task import Loss, Task

WEIGHTS = {"l1": 1.0, "gradient": 3.0, "opacity": 1.0, "depth": 1.0}
LABELS_AT_ONCE = 16
# Factors of the learning rate. A GAN's mapping is slowed down a hundredfold, lest it runs away from the
# discriminator; reconstruction has none. Super-resolution learns in one step of four, and would not get
# beyond a plain enlargement.
HASTE = {"mapping": 30.0, "superresolution": 3.0, "other": 1.0}
WHOLE_EVERY = 4  # steps; the others are sparse
# Of so many people with several photos one is looked at, by the last photo, which is not trained on.
HELD_OUT = 16
PREVIEWED = 8  # portraits
# Trained portraits that are compared with what they should be in the end, and so many at once.
KNOWN, KNOWN_AT_ONCE = 64, 8


class PortraitTask(Task[np.ndarray]):
    """GenHead learns portraits by heart.

    A batch is rows of the portraits, (2, B): those of the batch, and as many others.
    """

    def __init__(
        self,
        params: Params,
        genhead: GenHead,
        portraits: Portraits,
    ) -> None:
        self.section, self.sizes, self.seed = params.pretrain.genhead, params.networks, params.seed
        self.genhead, self.portraits = genhead, portraits
        self.optimiser = haste_optimiser(genhead, self.section.learning_rate)
        self.networks = {"genhead": genhead}
        self.optimisers = {"genhead": self.optimiser}
        self.states = States(genhead, portraits)
        self.raw = shrink(portraits.image, self.sizes.rays)
        self.held = held_out(portraits.z)
        self.trained = np.setdiff1d(np.arange(len(portraits.z)), self.held)

    def batch(self, step: int, microbatch: int) -> np.ndarray:
        draw = rng(self.seed, "genhead-batch", step)
        count, size = len(self.trained), self.section.batch
        # As long as there are enough, no portrait is its own stranger.
        chosen = draw.choice(count, (2, size), replace=2 * size > count)
        # The whole step is drawn and cut, so that it is the same however small the microbatches are.
        first = microbatch * self.section.microbatch
        last = first + self.section.microbatch
        return self.trained[chosen[:, first:last]]

    def set_rates(self, step: int) -> None:
        # Half a cosine: what is fine settles while the steps get small.
        set_rates(
            self.optimiser,
            step,
            warmup=0,
            decay_until=self.section.steps,
        )

    def losses(self, step: int, microbatch: int, batch: np.ndarray) -> Iterator[Loss]:
        index, strangers = batch
        # Microbatches add up to the mean over the batch.
        share = len(index) / self.section.batch
        jitter = torch_rng(self.seed, "genhead-rays", step, microbatch)
        planes, background = self._fields(index, strangers, update_average=True)
        sparse = rays_of_step(self.seed, "genhead-thin", step, WHOLE_EVERY)
        if sparse:
            terms = self._sparse_terms(planes, background, index, jitter, sparse)
        else:
            terms = self._whole_terms(planes, background, index, jitter)
        means = {name: share * value.mean() for name, value in terms.items()}
        yield Loss.weighted("genhead", means, WEIGHTS)

    def validate(self) -> Mapping[str, float]:
        """How near the portraits come that are held out, and how near the raw ones enlarged would come."""
        if not len(self.held):
            return {}
        drawn = self.shown(self.held)
        wanted = self.portraits.image[self.held]
        # Super-resolution has learnt something only where it beats this.
        enlarged = self.genhead.superresolution.enlarge(drawn.raw)
        found = {
            "l1": losses.l1(drawn.image, wanted),
            "psnr": psnr(drawn.image, wanted),
            "psnr_enlarged": psnr(enlarged, wanted),
            "edges": gradient_l1(drawn.image, wanted),
            "edges_enlarged": gradient_l1(enlarged, wanted),
        }
        return {name: values.mean() for name, values in found.items()}

    def preview(self, path: Path) -> None:
        """Some portraits, what GenHead makes of them, and that without its background."""
        count = min(PREVIEWED, len(self.portraits.z))
        index = np.arange(count)
        rendering = self.shown(index)
        wanted = self.portraits.image[index]
        save_grid(path, [wanted, rendering.image, rendering.foreground])

    @torch.no_grad()
    def shown(self, index: np.ndarray) -> Rendering:
        """Portraits as GenHead has learnt them."""
        strangers = (index + 1) % len(self.portraits.z)
        planes, background = self._fields(index, strangers)
        cameras = self.portraits.camera[index][:, None]
        return self.genhead.render(planes, background, self.states(index), cameras)

    def _fields(
        self,
        index: np.ndarray,
        strangers: np.ndarray,
        update_average: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Tri-planes and background of portraits."""
        # The camera that the mapping is told is that of another portrait, so that the planes cannot hold what
        # only holds from one side (facts 3.3).
        label, z = self.portraits.label, self.portraits.z[index]
        camera, shape = label[strangers, Label.CAMERA], label[index, Label.SHAPE]
        condition = torch.cat([camera, shape], dim=1)
        planes = self.genhead.planes(z, condition, update_average=update_average)
        background = self.genhead.background_feature(z, update_average=update_average)
        return planes, background

    def _whole_terms(
        self,
        planes: Tensor,
        background: Tensor,
        index: np.ndarray,
        jitter: torch.Generator,
    ) -> dict[str, Tensor]:
        """Of each sample, (B,)."""
        batch, states = take(self.portraits, index), self.states(index)
        cameras = batch.camera[:, None]
        rendering = self.genhead.render(planes, background, states, cameras, jitter)
        fine = losses.l1(rendering.image, batch.image)
        coarse = losses.l1(rendering.raw, self.raw[index])
        return {
            "l1": fine + coarse,
            "gradient": gradient_l1(rendering.image, batch.image),
            "opacity": losses.opacity_l1(rendering.opacity, batch.opacity),
            "depth": losses.depth_l1(rendering.depth, batch.depth, batch.opacity),
        }

    def _sparse_terms(
        self,
        planes: Tensor,
        background: Tensor,
        index: np.ndarray,
        jitter: torch.Generator,
        sparse: SparseRays,
    ) -> dict[str, Tensor]:
        """The same without super-resolution, on the rays of a sparse step."""
        batch, states = take(self.portraits, index), self.states(index, sparse)
        cameras = sparse.cameras(batch.camera, self.sizes.rays)[:, None]
        rays = self.genhead.rays(planes, states, cameras, jitter)
        rendering = compose(rays, sparse(background))
        raw = sparse(self.raw[index])
        opacity = sparse(batch.opacity)
        depth = sparse(batch.depth)
        # The raw picture counts twice, as the one with super-resolution is not made.
        return {
            "l1": 2 * losses.l1(rendering.raw, raw),
            "opacity": losses.opacity_l1(rendering.opacity, opacity),
            "depth": losses.depth_l1(rendering.depth, depth, opacity),
        }


def pretrain_genhead(
    params: Params,
    ingested: Path,
    labels: Path,
    truth: Path,
    out: Path,
    curves: Path | None = None,
) -> dict[str, Any]:
    """Train GenHead on the portraits, write what it has learnt to `out` and return metrics.

    `out` gets genhead.safetensors and portraits.safetensors, the portraits that it knows. The code of a
    real portrait is not known: each gets a random one of its own, and the fitted label. Raises UserError
    when there is no portrait.
    """
    section, sizes, seed = params.pretrain.genhead, params.networks, params.seed
    device = choose_device(params.machine.device)
    inputs = (section, sizes, params.flame, seed, ingested, labels, truth)
    folder = scratch_folder("pretrain_genhead", fingerprint(__file__, *inputs))

    flame = Flame(head_model.load(params.flame.model)).to(device)
    portraits = load_portraits(ingested, labels, truth, sizes, seed)
    portraits = to_device(portraits, device)
    own_seed = derive_seed(seed, "pretrain-genhead")
    torch.manual_seed(own_seed % 2**63)
    genhead = GenHead(sizes, flame).to(device)
    task = PortraitTask(params, genhead, portraits)
    run = Run(
        label="pretrain genhead",
        folder=folder,
        steps=section.steps,
        batch=section.batch,
        microbatches=section.batch // section.microbatch,
        preview_every=max(1, section.steps // 5),
        device=device,
        curves=curves,
    )
    trained = train(task, run)
    only_first(trained.group)

    facts = {
        "network": "genhead",
        "sizes": asdict(sizes),
        "steps": section.steps,
    }
    save_weights(out / "genhead.safetensors", genhead.state_dict(), facts)
    # A byte a number is what the files of ingest had, and a quarter of what the floats take.
    image = torch.from_numpy(to_uint8(portraits.image))
    known = asdict(portraits) | {"image": image}
    save_weights(out / "portraits.safetensors", known, {"network": "portraits that genhead knows"})
    write_json(out / "moved.json", trained.moved)
    forget(run)
    return {
        "history": trained.history,
        "portraits": len(portraits.z),
        "people": len(portraits.z.unique(dim=0)),
        "psnr_training_portraits": round(_known_psnr(task), 4),
    }


def _known_psnr(task: PortraitTask) -> float:
    """PSNR of some of the portraits that were trained on, dB."""
    rows = task.trained[:KNOWN]
    parts = max(1, len(rows) // KNOWN_AT_ONCE)
    found = []
    for index in np.array_split(rows, parts):
        drawn, wanted = task.shown(index).image, task.portraits.image[index]
        found.append(psnr(drawn, wanted))
    return float(torch.cat(found).mean())


def haste_optimiser(genhead: GenHead, learning_rate: float) -> torch.optim.Adam:
    """Adam on all weights, with the factors of HASTE."""
    parts: dict[str, list[torch.nn.Parameter]] = {part: [] for part in HASTE}
    for name, parameter in genhead.named_parameters():
        parts[_part(name)].append(parameter)
    groups = []
    for part, parameters in parts.items():
        groups.append({"params": parameters, "lr": learning_rate * HASTE[part]})
    return torch.optim.Adam(groups, betas=(0.5, 0.99), eps=1e-8, fused=True)


def _part(name: str) -> str:
    """The key of HASTE for a parameter."""
    if ".mapping." in name:
        return "mapping"
    return "superresolution" if name.startswith("superresolution.") else "other"


def held_out(z_NZ: Tensor) -> np.ndarray:
    """The rows that are kept from training, to look at.

    The last photo of every sixteenth person who has several. None of a person who has but one.
    """
    # Photos of one person have one code.
    _, person_of = z_NZ.cpu().unique(dim=0, return_inverse=True)
    people = person_of.numpy()
    several = np.flatnonzero(np.bincount(people) > 1)
    last = []
    for person in several[::HELD_OUT]:
        photos = np.flatnonzero(people == person)
        last.append(photos[-1])
    return np.array(last, int)


def psnr(image_BCHW: Tensor, wanted_BCHW: Tensor) -> Tensor:
    """Of pictures in [-1, 1], dB, (B,)."""
    # PSNR = -10 log10(MSE / peak^2), and the peak of these pictures is 2.
    error = (image_BCHW - wanted_BCHW).square()
    error = error.flatten(1).mean(1)
    return -10.0 * torch.log10(error / 4.0)


class States:
    """Deformation and masks of all portraits, found once."""

    def __init__(self, genhead: GenHead, portraits: Portraits) -> None:
        self.genhead, self.label = genhead, portraits.label
        # They follow from labels and cameras, which training does not change. All at once would not fit into
        # the memory of a small machine.
        labels = portraits.label.split(LABELS_AT_ONCE)
        cameras = portraits.camera[:, None].split(LABELS_AT_ONCE)
        # Without cells the deformation is computed anew at every sample point, from the label.
        self.offsets = None
        if cells := genhead.sizes.genhead.deformation_cells:
            offsets = [genhead.offsets(label, cells) for label in labels]
            self.offsets = torch.cat(offsets)
        pairs = zip(labels, cameras, strict=True)
        states = [genhead.state(label, camera) for label, camera in pairs]
        self.boxes = torch.cat([state.eye_boxes_BE23 for state in states])
        self.eyes = torch.cat([state.eye_mask_BVnn for state in states])
        self.mouths = torch.cat([state.mouth_mask_BVnn for state in states])

    def __call__(self, index: np.ndarray, sparse: SparseRays | None = None) -> HeadState:
        """Of some portraits, the masks at all rays or at those of a sparse step."""
        offsets = None if self.offsets is None else self.offsets[index]
        deform = self.genhead.deform(self.label[index], offsets)
        eyes = self.eyes[index]
        mouths = self.mouths[index]
        if sparse:
            eyes = sparse(eyes).contiguous()
            mouths = sparse(mouths).contiguous()
        return HeadState(deform, self.boxes[index], eyes, mouths)


def gradient_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """L1 between the differences of neighbouring pixels, (B,).

    It keeps edges sharp where plain L1 blurs them.
    """
    down = losses.l1(prediction.diff(dim=2), target.diff(dim=2))
    across = losses.l1(prediction.diff(dim=3), target.diff(dim=3))
    return down + across
