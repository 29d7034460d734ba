"""Stage pretrain, item genhead: GenHead at the scale of the generated heads (paper section 3.2, facts 3).

The published GenHead is a GAN, as the latent code of a photograph is not known. Of a generated portrait
latent code, label, camera, mask and depth are known, so that GenHead can learn by reconstruction, in
minutes: each portrait is to come out of its person's code and its own label.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.genhead import GenHead, HeadState
from model.head.flame import Flame
from model.volume.renderer import Rendering, compose
from pipeline.config.params import Params
from pipeline.core.device import choose_device
from pipeline.core.files import write_json
from pipeline.core.pictures import save_grid, to_uint8
from pipeline.core.seeds import derive_seed, rng, torch_rng
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.scratch import scratch_folder
from pipeline.geometry import head_model
from pipeline.geometry.label import Label
from pipeline.networks.weights import save_in_pieces, save_weights
from pipeline.pretrain.lazily import Lazily
from pipeline.pretrain.portraits import Maps, Portraits, load_portraits
from pipeline.train import losses
from pipeline.train.distributed import Group, only_first
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
SAVED_AT_ONCE = 64


@dataclass(frozen=True)
class PortraitBatch:
    """B portraits, and as many others, whose cameras the mapping is told."""

    index: np.ndarray  # (B,) rows of the portraits
    strangers: np.ndarray  # (B,)
    maps: Maps


class PortraitTask(Task[PortraitBatch]):
    """GenHead learns portraits by heart."""

    def __init__(
        self,
        params: Params,
        genhead: GenHead,
        portraits: Portraits,
    ) -> None:
        self.section = params.pretrain.genhead
        self.sizes = params.networks
        self.seed = params.seed
        self.genhead = genhead
        self.portraits = portraits
        self.optimiser = haste_optimiser(genhead, self.section.learning_rate)
        self.networks = {"genhead": genhead}
        self.optimisers = {"genhead": self.optimiser}
        self.states = States(genhead, portraits)
        self.held = held_out(portraits.z)
        self.trained = np.setdiff1d(np.arange(len(portraits.z)), self.held)

    def batch(self, step: int, microbatch: int) -> PortraitBatch:
        draw = rng(self.seed, "genhead-batch", step)
        count, size = len(self.trained), self.section.batch
        # As long as there are enough, no portrait is its own stranger.
        chosen = draw.choice(count, (2, size), replace=2 * size > count)
        # The whole step is drawn and cut, so that it is the same however small the microbatches are.
        first = microbatch * self.section.microbatch
        last = first + self.section.microbatch
        index, strangers = self.trained[chosen[:, first:last]]
        return PortraitBatch(index, strangers, self.portraits.maps(index))

    def set_rates(self, step: int) -> None:
        # Half a cosine: what is fine settles while the steps get small.
        set_rates(
            self.optimiser,
            step,
            warmup=0,
            decay_until=self.section.steps,
        )

    def losses(self, step: int, microbatch: int, batch: PortraitBatch) -> Iterator[Loss]:
        index, strangers = batch.index, batch.strangers
        # Microbatches add up to the mean over the batch.
        share = len(index) / self.section.batch
        jitter = torch_rng(self.seed, "genhead-rays", step, microbatch)
        planes, background = self._fields(index, strangers, update_average=True)
        sparse = rays_of_step(self.seed, "genhead-thin", step, WHOLE_EVERY)
        if sparse:
            terms = self._sparse_terms(planes, background, batch, jitter, sparse)
        else:
            terms = self._whole_terms(planes, background, batch, jitter)
        means = {name: share * value.mean() for name, value in terms.items()}
        yield Loss.weighted("genhead", means, WEIGHTS)

    def validate(self, group: Group) -> Mapping[str, float]:
        """How near the portraits come that are held out, and how near the raw ones enlarged would come."""
        if not len(self.held) or not group.first:
            return {}
        drawn = self.shown(self.held)
        wanted = self.pictures(self.held)
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
        wanted = self.pictures(index)
        save_grid(path, [wanted, rendering.image, rendering.foreground])

    def pictures(self, index: np.ndarray) -> Tensor:
        """Portraits as they are, beside the network."""
        return self.portraits.maps(index).image.to(self.portraits.z.device)

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
        camera = label[strangers, Label.CAMERA]
        shape = label[index, Label.SHAPE]
        condition = torch.cat([camera, shape], dim=1)
        planes = self.genhead.planes(z, condition, update_average=update_average)
        background = self.genhead.background_feature(z, update_average=update_average)
        return planes, background

    def _whole_terms(
        self,
        planes: Tensor,
        background: Tensor,
        batch: PortraitBatch,
        jitter: torch.Generator,
    ) -> dict[str, Tensor]:
        """Of each sample, (B,)."""
        maps, states = batch.maps, self.states(batch.index)
        cameras = self.portraits.camera[batch.index][:, None]
        rendering = self.genhead.render(planes, background, states, cameras, jitter)
        fine = losses.l1(rendering.image, maps.image)
        coarse = losses.l1(rendering.raw, maps.raw)
        return {
            "l1": fine + coarse,
            "gradient": gradient_l1(rendering.image, maps.image),
            "opacity": losses.opacity_l1(rendering.opacity, maps.opacity),
            "depth": losses.depth_l1(rendering.depth, maps.depth, maps.opacity),
        }

    def _sparse_terms(
        self,
        planes: Tensor,
        background: Tensor,
        batch: PortraitBatch,
        jitter: torch.Generator,
        sparse: SparseRays,
    ) -> dict[str, Tensor]:
        """The same without super-resolution, on the rays of a sparse step."""
        maps, states = batch.maps, self.states(batch.index, sparse)
        whole = self.portraits.camera[batch.index]
        cameras = sparse.cameras(whole, self.sizes.rays)[:, None]
        rays = self.genhead.rays(planes, states, cameras, jitter)
        rendering = compose(rays, sparse(background))
        raw = sparse(maps.raw)
        opacity = sparse(maps.opacity)
        depth = sparse(maps.depth)
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
    portraits = load_portraits(ingested, labels, truth, sizes, seed).to(device)
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
    save_portraits(out / "portraits.safetensors", portraits)
    write_json(out / "moved.json", trained.moved)
    forget(run)
    return {
        "history": trained.history,
        "portraits": len(portraits),
        "people": len(portraits.z.unique(dim=0)),
        "psnr_training_portraits": round(_known_psnr(task), 4),
    }


def _known_psnr(task: PortraitTask) -> float:
    """PSNR of some of the portraits that were trained on, dB."""
    rows = task.trained[:KNOWN]
    parts = max(1, len(rows) // KNOWN_AT_ONCE)
    found = []
    for index in np.array_split(rows, parts):
        drawn, wanted = task.shown(index).image, task.pictures(index)
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
    """Deformation and masks of portraits, found when they are first wanted."""

    def __init__(self, genhead: GenHead, portraits: Portraits) -> None:
        self.genhead, self.portraits = genhead, portraits
        # They follow from labels and cameras, which training does not change. Without cells the deformation
        # is computed anew at every sample point, from the label.
        self.cells = genhead.sizes.genhead.deformation_cells
        # The offsets of three parts are by far the most of it, float32.
        row_bytes = 4 * 3 * 3 * self.cells**3
        self.found = Lazily(self._find, len(portraits), LABELS_AT_ONCE, row_bytes)

    def __call__(self, index: np.ndarray, sparse: SparseRays | None = None) -> HeadState:
        """Of some portraits, the masks at all rays or at those of a sparse step."""
        found = self.found(index)
        deform = self.genhead.deform(self.portraits.label[index], found.get("offsets"))
        eyes, mouths = found["eyes"], found["mouths"]
        if sparse:
            eyes = sparse(eyes).contiguous()
            mouths = sparse(mouths).contiguous()
        return HeadState(deform, found["boxes"], eyes, mouths)

    def _find(self, rows: np.ndarray) -> dict[str, Tensor]:
        label = self.portraits.label[rows]
        camera = self.portraits.camera[rows][:, None]
        state = self.genhead.state(label, camera)
        found = {"boxes": state.eye_boxes_BE23, "eyes": state.eye_mask_BVnn, "mouths": state.mouth_mask_BVnn}
        if self.cells:
            found["offsets"] = self.genhead.offsets(label, self.cells)
        return found


def save_portraits(path: Path, portraits: Portraits) -> None:
    """Write all that is known of the portraits, some at a time: memory may not hold all pictures."""
    count = len(portraits)
    one = portraits.maps(np.arange(1))
    side = one.image.shape[-1]
    rays = one.raw.shape[-1]
    forms = {
        "image": ((count, side, side, 3), torch.uint8),
        "opacity": ((count, 1, rays, rays), torch.float32),
        "depth": ((count, 1, rays, rays), torch.float32),
        "z": (tuple(portraits.z.shape), torch.float32),
        "label": (tuple(portraits.label.shape), torch.float32),
        "camera": (tuple(portraits.camera.shape), torch.float32),
    }

    def pieces(name: str) -> Iterator[Tensor]:
        for rows in np.array_split(np.arange(count), -(-count // SAVED_AT_ONCE)):
            # A byte a number is what the files of ingest had, and a quarter of what the floats take.
            if name == "image":
                yield torch.from_numpy(to_uint8(portraits.maps(rows).image))
            elif name in ("opacity", "depth"):
                yield getattr(portraits.maps(rows), name)
            else:
                yield getattr(portraits, name)[rows].cpu()

    save_in_pieces(path, forms, pieces, {"network": "portraits that genhead knows"})


def gradient_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """L1 between the differences of neighbouring pixels, (B,).

    It keeps edges sharp where plain L1 blurs them.
    """
    down = losses.l1(prediction.diff(dim=2), target.diff(dim=2))
    across = losses.l1(prediction.diff(dim=3), target.diff(dim=3))
    return down + across
