"""Stage pretrain, item genhead: GenHead at the scale of the generated heads (paper section 3.2, facts 3).

The published GenHead is a GAN, for nobody knows the latent code of a photograph. Of a generated portrait latent code, label, camera, mask and
depth are known, so that GenHead can learn by reconstruction, in minutes: each portrait is to come out of its person's code and its own label.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from model.genhead import GenHead, HeadState
from model.head.flame import Flame
from model.sizes import Sizes
from model.volume.renderer import Rendering, compose
from model.weights import save_weights
from pipeline.config.params import Params
from pipeline.core.device import choose_device, to_device
from pipeline.core.errors import UserError
from pipeline.core.files import key_of, write_json
from pipeline.core.pictures import save_grid, to_uint8
from pipeline.core.seeds import derive_seed, rng, torch_rng
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.scratch import scratch_folder
from pipeline.geometry import head_model
from pipeline.geometry.camera import pack, unpack
from pipeline.store.samples import DEPTH_UNIT, image_tensor
from pipeline.store.shards import ShardReader, decode_png
from pipeline.train import losses
from pipeline.train.image_terms import shrink
from pipeline.train.loop import TrainingLoop, update
from pipeline.train.sparse_rays import SparseRays, rays_of_step

WEIGHTS = {"l1": 1.0, "gradient": 3.0, "opacity": 1.0, "depth": 1.0}
LABELS_AT_ONCE = 16
# Factors of the learning rate. A GAN's mapping is slowed down a hundredfold, lest it runs away from the discriminator; reconstruction has
# nobody to run away from. Super-resolution learns in one step of four, and would not get beyond a plain enlargement.
HASTE = {"mapping": 30.0, "superresolution": 3.0, "other": 1.0}
WHOLE_EVERY = 4  # steps; the others are sparse
HELD_OUT = 16  # of so many people with several photos one, whose last photo is not trained on


@dataclass
class Portraits:
    """All portraits in memory; N portraits, S pixels, n rays."""

    image: Tensor  # (N, 3, S, S) in [-1, 1]
    opacity: Tensor  # (N, 1, n, n) in [0, 1]
    depth: Tensor  # (N, 1, n, n) world units along the ray; inf where there is nothing or nothing is known
    z: Tensor  # (N, 512) of the person
    label: Tensor  # (N, 437)
    camera: Tensor  # (N, 25) of the aligned image

    def rows(self, index: np.ndarray) -> "Portraits":
        return Portraits(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def pretrain_genhead(params: Params, ingested: Path, labels: Path, truth: Path, out: Path) -> dict[str, Any]:
    """Train GenHead on the generated portraits, write `out`/genhead.safetensors and what it has learnt, portraits.safetensors; returns metrics.

    Of real portraits nobody knows the code: each gets a random one of its own, and the fitted label. Raises UserError when there is none at all.
    """
    section, sizes, device = params.pretrain.genhead, params.networks, choose_device(params.machine.device)
    flame = Flame(head_model.load(params.flame.model)).to(device)
    portraits = to_device(load_portraits(ingested, labels, truth, sizes, params.seed), device)
    torch.manual_seed(derive_seed(params.seed, "pretrain-genhead") % 2**63)
    genhead = GenHead(sizes, flame).to(device)
    optimiser = haste_optimiser(genhead, section.learning_rate)
    rates = [group["lr"] for group in optimiser.param_groups]
    states = States(genhead, portraits)
    raw = shrink(portraits.image, sizes.rays)
    count = len(portraits.z)
    held = held_out(portraits.z)
    trained = np.setdiff1d(np.arange(count), held)

    def planes_and_background(
        index: np.ndarray, strangers: np.ndarray, update_average: bool = False
    ) -> tuple[Tensor, Tensor]:
        # The camera that the mapping is told is somebody else's, so that the planes cannot hold what only holds from one side (facts 3.3).
        condition = torch.cat([portraits.label[strangers, :25], portraits.label[index, 25:325]], dim=1)
        z = portraits.z[index]
        return genhead.planes(z, condition, update_average=update_average), genhead.background_feature(
            z, update_average=update_average
        )

    def whole(
        planes: Tensor, background: Tensor, index: np.ndarray, generator: torch.Generator
    ) -> dict[str, Tensor]:
        batch = portraits.rows(index)
        rendering = genhead.render(planes, background, states(index), batch.camera[:, None], generator)
        return {
            "l1": losses.l1(rendering.image, batch.image) + losses.l1(rendering.raw, raw[index]),
            "gradient": gradient_l1(rendering.image, batch.image),
            "opacity": losses.opacity_l1(rendering.opacity, batch.opacity),
            "depth": losses.depth_l1(rendering.depth, batch.depth, batch.opacity),
        }

    def some(
        planes: Tensor, background: Tensor, index: np.ndarray, generator: torch.Generator, sparse: SparseRays
    ) -> dict[str, Tensor]:
        """The same without super-resolution, on the rays of a sparse step."""
        batch = portraits.rows(index)
        cameras = sparse.cameras(batch.camera, sizes.rays)[:, None]
        rays = genhead.rays(planes, states(index, sparse), cameras, generator)
        rendering = compose(rays, sparse(background))
        opacity = sparse(batch.opacity)
        return {
            "l1": 2 * losses.l1(rendering.raw, sparse(raw[index])),
            "opacity": losses.opacity_l1(rendering.opacity, opacity),
            "depth": losses.depth_l1(rendering.depth, sparse(batch.depth), opacity),
        }

    def step(i: int, index: np.ndarray) -> dict[str, Tensor | float]:
        jitter, fields = (
            torch_rng(params.seed, "genhead-rays", i),
            planes_and_background(*index, update_average=True),
        )
        sparse = rays_of_step(params.seed, "genhead-thin", i, WHOLE_EVERY)
        terms = some(*fields, index[0], jitter, sparse) if sparse else whole(*fields, index[0], jitter)
        terms = {name: value.mean() for name, value in terms.items()}
        for group, rate in zip(
            optimiser.param_groups, rates, strict=True
        ):  # half a cosine: what is fine settles while the steps get small
            group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * i / training.steps))
        update(optimiser, sum(WEIGHTS[name] * value for name, value in terms.items()))
        return {name: value.detach() for name, value in terms.items()}

    @torch.no_grad()
    def shown(index: np.ndarray) -> Rendering:
        return genhead.render(
            *planes_and_background(index, (index + 1) % count),
            states(index),
            portraits.camera[index][:, None],
        )

    def validate() -> dict[str, float]:
        if not len(held):
            return {}
        drawn, wanted = shown(held), portraits.image[held]
        enlarged = genhead.superresolution.enlarge(drawn.raw)
        found = {
            "l1": losses.l1(drawn.image, wanted),
            "psnr": psnr(drawn.image, wanted),
            "psnr_enlarged": psnr(enlarged, wanted),
            "edges": gradient_l1(drawn.image, wanted),
            "edges_enlarged": gradient_l1(enlarged, wanted),
        }
        return {name: values.mean() for name, values in found.items()}

    def preview(done: int) -> None:
        index = np.arange(min(8, count))
        rendering = shown(index)
        save_grid(
            training.folder / f"preview-{done:07d}.jpg",
            [portraits.image[index], rendering.image, rendering.foreground],
        )

    training = TrainingLoop(
        label="pretrain genhead",
        folder=scratch_folder(
            "pretrain_genhead",
            fingerprint(
                __file__, section, sizes, params.flame, params.seed, params.threads, ingested, labels, truth
            ),
        ),
        steps=section.steps,
        batch=section.batch,
        modules={"genhead": genhead},
        optimisers={"genhead": optimiser},
        device=device,
    )

    def load(i: int) -> np.ndarray:
        draw = rng(params.seed, "genhead-batch", i)
        return trained[
            draw.choice(len(trained), (2, section.batch), replace=2 * section.batch > len(trained))
        ]

    history = training.run(load, step, preview, max(1, section.steps // 5), validate)
    save_weights(
        out / "genhead.safetensors",
        genhead.state_dict(),
        {"network": "genhead", "sizes": asdict(sizes), "steps": section.steps},
    )
    known = asdict(portraits) | {"image": torch.from_numpy(to_uint8(portraits.image))}
    save_weights(out / "portraits.safetensors", known, {"network": "portraits that genhead knows"})
    known = [
        psnr(shown(index).image, portraits.image[index])
        for index in np.array_split(trained[:64], max(1, min(len(trained), 64) // 8))
    ]
    write_json(out / "moved.json", training.moved)
    training.finish()
    people = len(portraits.z.unique(dim=0))
    return {
        "history": history,
        "portraits": count,
        "people": people,
        "psnr_training_portraits": round(float(torch.cat(known).mean()), 4),
    }


def haste_optimiser(genhead: GenHead, learning_rate: float) -> torch.optim.Adam:
    """Adam on all weights, with the factors of HASTE."""
    parts: dict[str, list[torch.nn.Parameter]] = {part: [] for part in HASTE}
    for name, parameter in genhead.named_parameters():
        part = (
            "mapping"
            if ".mapping." in name
            else "superresolution"
            if name.startswith("superresolution.")
            else "other"
        )
        parts[part].append(parameter)
    groups = [{"params": parameters, "lr": learning_rate * HASTE[part]} for part, parameters in parts.items()]
    return torch.optim.Adam(groups, betas=(0.5, 0.99), eps=1e-8)


def held_out(z_NZ: Tensor) -> np.ndarray:
    """The rows that are kept from training, to look at: the last photo of every sixteenth person who has several. Nobody who has but one."""
    people = z_NZ.cpu().unique(dim=0, return_inverse=True)[1].numpy()
    several = [person for person, photos in enumerate(np.bincount(people)) if photos > 1]
    return np.array([np.flatnonzero(people == person)[-1] for person in several[::HELD_OUT]], int)


def psnr(image_BCHW: Tensor, wanted_BCHW: Tensor) -> Tensor:
    """Of pictures in [-1, 1], dB, (B,)."""
    return -10.0 * torch.log10((image_BCHW - wanted_BCHW).square().flatten(1).mean(1) / 4.0)


class States:
    """Deformation and masks of all portraits, found once."""

    def __init__(self, genhead: GenHead, portraits: Portraits) -> None:
        self.genhead, self.label = genhead, portraits.label
        cells = genhead.sizes.genhead.deformation_cells
        self.offsets = (
            torch.cat([genhead.offsets(label, cells) for label in portraits.label.split(LABELS_AT_ONCE)])
            if cells
            else None
        )
        parts = []
        for label, camera in zip(
            portraits.label.split(LABELS_AT_ONCE), portraits.camera.split(LABELS_AT_ONCE), strict=True
        ):
            state = genhead.state(label, camera[:, None])
            parts.append((state.eye_boxes_BE23, state.eye_mask_BVnn, state.mouth_mask_BVnn))
        self.boxes, *self.masks = (torch.cat(column) for column in zip(*parts, strict=True))

    def __call__(self, index: np.ndarray, sparse: SparseRays | None = None) -> HeadState:
        """Of some portraits, the masks at all rays or at those of a sparse step."""
        deform = self.genhead.deform(self.label[index], None if self.offsets is None else self.offsets[index])
        masks = (mask[index] for mask in self.masks)
        return HeadState(
            deform, self.boxes[index], *(sparse(mask).contiguous() if sparse else mask for mask in masks)
        )


def gradient_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """L1 between the differences of neighbouring pixels, (B,): keeps edges sharp where plain L1 blurs them."""
    along = [losses.l1(prediction.diff(dim=axis), target.diff(dim=axis)) for axis in (2, 3)]
    return along[0] + along[1]


def load_portraits(ingested: Path, labels: Path, truth: Path, sizes: Sizes, seed: int) -> Portraits:
    """The portraits that ingest and fit_flame accepted. Raises UserError when there is none."""
    rows = {
        row["key"]: row
        for row in pq.read_table(ingested / "portraits.parquet").to_pylist()
        if row["status"] == "ok"
    }
    fitted = {
        row["key"]: row["label"]
        for row in pq.read_table(labels / "ffhq.parquet").to_pylist()
        if row["status"] == "ok"
    }
    keys = sorted(rows.keys() & fitted.keys())
    if not keys:
        raise UserError(
            "pretrain genhead: no portrait was both accepted and fitted. metrics/ingest.json and metrics/fit_flame_ffhq.json say why."
        )
    describe = (
        _TrueHeads(truth, sizes.rays)
        if (truth / "portraits.parquet").exists()
        else _FittedHeads(fitted, sizes, seed)
    )
    images = ShardReader(ingested / "shards")
    columns = []
    for key in keys:
        fields = images.read(key)
        columns.append((image_tensor(fields["image.png"]), *describe(rows[key], fields)))
    return Portraits(*(torch.stack(column) for column in zip(*columns, strict=True)))


class _TrueHeads:
    """Opacity, depth, z, label and camera of generated portraits, from the truth."""

    def __init__(self, truth: Path, rays: int) -> None:
        self.known = {row["file"]: row for row in pq.read_table(truth / "portraits.parquet").to_pylist()}
        self.codes = {
            row["identity"]: row["z"] for row in pq.read_table(truth / "identities.parquet").to_pylist()
        }
        self.masks, self.rays = ShardReader(truth), rays

    def __call__(self, row: dict[str, Any], fields: dict[str, bytes]) -> tuple[Tensor, ...]:
        real, drawn = self.known[row["file"]], self.masks.read(key_of(row["file"]))
        mask = decode_png(drawn["mask.png"]).astype(np.float32) / 255.0
        depth = decode_png(drawn["depth.png"]).astype(np.float32) * DEPTH_UNIT
        return (
            torch.from_numpy(aligned_mean(mask, row["crop"], self.rays))[None],
            torch.from_numpy(aligned_depth(depth, row["crop"], self.rays))[None],
            torch.tensor(self.codes[real["identity"]]),
            torch.tensor(real["label"]),
            torch.from_numpy(aligned_camera(np.array(real["camera"], np.float32), row)),
        )


class _FittedHeads:
    """The same of real portraits: the mask that ingest found, no depth, the fitted label, and a code of its own for every portrait."""

    def __init__(self, fitted: dict[str, list[float]], sizes: Sizes, seed: int) -> None:
        self.fitted, self.sizes, self.seed = fitted, sizes, seed

    def __call__(self, row: dict[str, Any], fields: dict[str, bytes]) -> tuple[Tensor, ...]:
        opacity = shrink(image_tensor(fields["mask.png"])[None], self.sizes.rays)[0]
        label = torch.tensor(self.fitted[row["key"]])
        code = (
            rng(self.seed, "portrait code", row["key"])
            .normal(size=self.sizes.genhead.z_dim)
            .astype(np.float32)
        )
        return opacity, torch.full_like(opacity, torch.inf), torch.from_numpy(code), label, label[:25]


def aligned_camera(camera_25: np.ndarray, row: dict[str, Any]) -> np.ndarray:
    """The camera of the raw image, with the intrinsics of the aligned one. `row` has crop (scale, tx, ty), width and height of the raw image."""
    cam2world, intrinsics = unpack(camera_25)
    scale, tx, ty = row["crop"]
    crop = np.array([[scale * row["width"], 0.0, tx], [0.0, scale * row["height"], ty], [0.0, 0.0, 1.0]])
    return pack(cam2world, crop @ intrinsics)


def aligned_mean(raw_HW: np.ndarray, crop: list[float], side: int, sub: int = 4) -> np.ndarray:
    """The mean over each pixel of the aligned image of side x side, by sub x sub points; outside of the raw image the border goes on."""
    fine = _resample(raw_HW, crop, side * sub, cv2.INTER_LINEAR)
    return fine.reshape(side, sub, side, sub).mean((1, 3))


def aligned_depth(raw_HW: np.ndarray, crop: list[float], side: int) -> np.ndarray:
    """Depth at the centres of the aligned pixels, inf where the raw image has none (0)."""
    depth = _resample(raw_HW, crop, side, cv2.INTER_NEAREST)
    return np.where(depth > 0, depth, np.inf).astype(np.float32)


def _resample(raw_HW: np.ndarray, crop: list[float], side: int, method: int) -> np.ndarray:
    scale, tx, ty = crop
    centres = (np.arange(side, dtype=np.float32) + 0.5) / side
    x, y = np.meshgrid((centres - tx) / scale - 0.5, (centres - ty) / scale - 0.5)
    return cv2.remap(
        raw_HW, x.astype(np.float32), y.astype(np.float32), method, borderMode=cv2.BORDER_REPLICATE
    )
