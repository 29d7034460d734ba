"""Stage pretrain, item genhead: GenHead at the scale of the generated heads (paper section 3.2, facts 3).

The published GenHead is a GAN, for nobody knows the latent code of a photograph. Of a generated portrait latent code, label, camera, mask and
depth are known, so that GenHead can learn by reconstruction, in minutes: each portrait is to come out of its person's code and its own label.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from model import losses
from model.flame import Flame
from model.genhead import GenHead
from model.weights import save_weights
from pipeline import head_model
from pipeline.camera import pack, unpack
from pipeline.counter import counter_seed, rng, torch_rng
from pipeline.errors import UserError
from pipeline.files import key_of
from pipeline.generated import DEPTH_UNIT
from pipeline.heads import image_tensor
from pipeline.objective import shrink
from pipeline.params import Params
from pipeline.pictures import save_grid
from pipeline.pool import fingerprint, scratch_folder
from pipeline.shards import ShardReader, decode_png
from pipeline.trainer import Training, update

WEIGHTS = {"l1": 1.0, "gradient": 2.0, "opacity": 1.0, "depth": 1.0}
LABELS_AT_ONCE = 16
MAPPING_HASTE = 30.0


@dataclass
class Portraits:
    """All portraits in memory; N portraits, S pixels, n rays."""

    image: Tensor  # (N, 3, S, S) in [-1, 1]
    opacity: Tensor  # (N, 1, n, n) true coverage, in [0, 1]
    depth: Tensor  # (N, 1, n, n) true depth, world units along the ray; inf outside
    z: Tensor  # (N, 512) of the person
    label: Tensor  # (N, 437) true
    camera: Tensor  # (N, 25) true, in the aligned image

    def rows(self, index: np.ndarray) -> "Portraits":
        return Portraits(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def pretrain_genhead(params: Params, ingested: Path, labels: Path, truth: Path, out: Path) -> dict[str, Any]:
    """Train GenHead on the generated portraits, write `out`/genhead.safetensors and the codes it knows, latents.safetensors; returns metrics.

    `labels` is not used: the true ones are better. Raises UserError when there is no truth, that is, with real portraits.
    """
    section, sizes = params.pretrain.genhead, params.networks
    flame = Flame(head_model.load(params.flame.model))
    portraits = load_portraits(ingested, truth, sizes.image, sizes.rays)
    torch.manual_seed(counter_seed(params.seed, "pretrain-genhead") % 2**63)
    genhead = GenHead(sizes, flame)
    # A GAN's mapping is slowed down a hundredfold, lest it runs away from the discriminator. Reconstruction has nobody to run away from.
    mapping = [parameter for name, parameter in genhead.named_parameters() if ".mapping." in name]
    other = [parameter for name, parameter in genhead.named_parameters() if ".mapping." not in name]
    groups = [{"params": mapping, "lr": section.learning_rate * MAPPING_HASTE}, {"params": other, "lr": section.learning_rate}]
    rates = [group["lr"] for group in groups]
    optimiser = torch.optim.Adam(groups, betas=(0.5, 0.99), eps=1e-8)
    cells = sizes.genhead.deformation_cells
    offsets = torch.cat([genhead.offsets(part, cells) for part in portraits.label.split(LABELS_AT_ONCE)]) if cells else None
    count = len(portraits.z)

    def render(index: np.ndarray, strangers: np.ndarray, generator: torch.Generator | None, update_average: bool = False):
        batch = portraits.rows(index)
        # The camera that the mapping is told is somebody else's, so that the planes cannot hold what only holds from one side (facts 3.3).
        condition = torch.cat([portraits.label[strangers, :25], batch.label[:, 25:325]], dim=1)
        state = genhead.state(batch.label, batch.camera[:, None], None if offsets is None else offsets[index])
        planes = genhead.planes(batch.z, condition, update_average=update_average)
        background = genhead.background_feature(batch.z, update_average=update_average)
        return batch, genhead.render(planes, background, state, batch.camera[:, None], generator)

    def step(i: int, index: np.ndarray) -> dict[str, Tensor | float]:
        batch, rendering = render(index[0], index[1], torch_rng(params.seed, "genhead-rays", i), True)
        terms = {
            "l1": losses.l1(rendering.image, batch.image) + losses.l1(rendering.raw, shrink(batch.image, sizes.rays)),
            "gradient": gradient_l1(rendering.image, batch.image),
            "opacity": losses.opacity_l1(rendering.opacity, batch.opacity),
            "depth": losses.depth_l1(rendering.depth, batch.depth, batch.opacity),
        }
        terms = {name: value.mean() for name, value in terms.items()}
        progress_made = i / training.steps
        for group, rate in zip(optimiser.param_groups, rates, strict=True):  # the last fifth settles
            group["lr"] = rate * min(1.0, 5.0 * (1.0 - progress_made) + 0.05)
        update(optimiser, sum(WEIGHTS[name] * value for name, value in terms.items()))
        return {name: value.detach() for name, value in terms.items()}

    def preview(done: int) -> None:
        index = np.arange(min(8, count))
        with torch.no_grad():
            batch, rendering = render(index, index[::-1].copy(), None)
        save_grid(training.folder / f"preview-{done:07d}.jpg", [batch.image, rendering.image, rendering.foreground])

    training = Training(
        label="pretrain genhead",
        folder=scratch_folder("pretrain_genhead", fingerprint(section, sizes, params.seed, params.threads, ingested, truth)),
        steps=section.steps,
        batch=section.batch,
        modules={"genhead": genhead},
        optimisers={"genhead": optimiser},
    )

    def load(i: int) -> np.ndarray:
        draw = rng(params.seed, "genhead-batch", i)
        return draw.choice(count, (2, section.batch), replace=2 * section.batch > count)

    history = training.run(load, step, preview, max(1, section.steps // 5))
    save_weights(out / "genhead.safetensors", genhead.state_dict(), {"network": "genhead", "sizes": asdict(sizes), "steps": section.steps})
    save_weights(out / "latents.safetensors", {"z": portraits.z.unique(dim=0)}, {"network": "genhead latents"})
    psnr = []
    with torch.no_grad():
        for start in range(0, min(count, 64), 8):
            index = np.arange(start, min(start + 8, count))
            batch, rendering = render(index, (index + 1) % count, None)
            psnr.append(-10.0 * torch.log10((rendering.image - batch.image).square().flatten(1).mean(1) / 4.0))
    training.finish()
    return {"history": history, "portraits": count, "people": len(portraits.z.unique(dim=0)), "psnr": round(float(torch.cat(psnr).mean()), 4)}


def gradient_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """L1 between the differences of neighbouring pixels, (B,): keeps edges sharp where plain L1 blurs them."""
    along = [losses.l1(prediction.diff(dim=axis), target.diff(dim=axis)) for axis in (2, 3)]
    return along[0] + along[1]


def load_portraits(ingested: Path, truth: Path, image: int, rays: int) -> Portraits:
    """The portraits that ingest accepted, with their truth. Raises UserError when they have none."""
    if not (truth / "portraits.parquet").exists():
        raise UserError(
            "pretrain genhead: latent codes and cameras of real portraits are not known, so GenHead cannot be trained by reconstruction on them. "
            "Use pretrain.source: official with the published weights, or ingest.source: generated."
        )
    known = {row["file"]: row for row in pq.read_table(truth / "portraits.parquet").to_pylist()}
    codes = {row["identity"]: row["z"] for row in pq.read_table(truth / "identities.parquet").to_pylist()}
    rows = [row for row in pq.read_table(ingested / "portraits.parquet").to_pylist() if row["status"] == "ok"]
    images, masks = ShardReader(ingested / "shards"), ShardReader(truth)
    columns = []
    for row in sorted(rows, key=lambda row: row["key"]):
        real = known[row["file"]]
        fields = masks.read(key_of(row["file"]))
        mask = decode_png(fields["mask.png"]).astype(np.float32) / 255.0
        depth = decode_png(fields["depth.png"]).astype(np.float32) * DEPTH_UNIT
        columns.append(
            (
                image_tensor(images.read(row["key"], "image.png")),
                torch.from_numpy(aligned_mean(mask, row["crop"], rays))[None],
                torch.from_numpy(aligned_depth(depth, row["crop"], rays))[None],
                torch.tensor(codes[real["identity"]]),
                torch.tensor(real["label"]),
                torch.from_numpy(aligned_camera(np.array(real["camera"], np.float32), row)),
            )
        )
    return Portraits(*(torch.stack(column) for column in zip(*columns, strict=True)))


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
    return cv2.remap(raw_HW, x.astype(np.float32), y.astype(np.float32), method, borderMode=cv2.BORDER_REPLICATE)
