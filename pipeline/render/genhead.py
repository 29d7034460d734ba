"""Stage render_genhead: the synthetic multi-view images that teach Psi_3d (paper section 4.2; facts 3.4, 3.5).

Every draw depends on (seed, head) alone. A sample holds, of one head with one expression, V views: `view{i}.png` and
`uv{i}.png` (S x S), `opacity.png` (V * n x n, grey, the views below one another), `depth.npy` (V, n, n float16, world
units along the ray), `background.png` (n x n), `cameras.npy` (V, 25 float32), `label.npy` (437 float32, its camera is
that of view 0), `landmarks.npy` (V, 70, 2 float32, fractions of the image), `points.npy` (P, 3 float16, world) and
`features.npy` (P, C float16), GenHead's plane-averaged face features there. Its key is `head-{number}`, or
`photo-{number}` where view 0 is a portrait, with the opacity and the depth that are known of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from model.genhead import GenHead
from model.head.flame import Flame
from model.volume.renderer import camera_rays, coarse_depths
from model.weights import load_weights
from pipeline.config.disk import head_bytes
from pipeline.config.params import Params, RenderGenhead
from pipeline.core.device import choose_device
from pipeline.core.errors import UserError
from pipeline.core.pictures import to_uint8
from pipeline.core.seeds import rng
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.run import run_units
from pipeline.engine.scratch import publish, scratch_folder
from pipeline.engine.work_unit import WorkUnit, units_of
from pipeline.geometry import head_model
from pipeline.geometry.camera import sample_look_at
from pipeline.render.landmarks import view_landmarks
from pipeline.render.position_map import position_map
from pipeline.store.samples import PHOTO
from pipeline.store.shards import Sample, encode_npy, encode_png

SAMPLES_AT_ONCE, HEADS_AT_ONCE = (
    1 << 19,
    8,
)  # what one pass may hold: coarse samples, as far as a head allows, and heads
NEAR_SURFACE = 0.08  # world units, standard deviation of points about the rendered surface
CAMERA, SHAPE, NECK, JAW, EYES = (
    slice(0, 25),
    slice(25, 325),
    slice(425, 428),
    slice(428, 431),
    slice(431, 437),
)
MOTION = slice(325, 431)  # expression, neck, jaw


def render_genhead(params: Params, labels: Path, genhead: Path, out: Path) -> dict[str, Any]:
    """Render all heads into shards in `out`; returns the metrics. `labels` and `genhead` are the folders of those stages.

    Raises UserError when a label table or the weights are missing or no label is usable.
    """
    section = params.render_genhead
    Pools(labels)  # says what is missing before any worker starts
    units = units_of("heads", list(range(section.heads)), section.shard_size)
    mark = fingerprint(__file__, section, params.networks, params.flame, params.seed, labels, genhead)
    scratch = scratch_folder("render_genhead", mark)
    renderer = partial(HeadRenderer, params, labels.resolve(), genhead.resolve())
    done = run_units(
        units,
        renderer,
        scratch,
        params.machine,
        "render_genhead",
        {"heads": 1, "images": section.views},
        head_bytes(params),
    )
    publish(scratch, out)
    heads = sum(result.record.get("heads", 0) for result in done)
    return {
        "heads": heads,
        "given_up": sum(len(result.rejects) for result in done),
        "images": heads * section.views,
        "shards": len(done),
        "bytes": sum(result.shard.bytes for result in done if result.shard),
        "foreground": round(sum(result.record.get("foreground", 0.0) for result in done) / heads, 4),
    }


class Pools:
    """The fitted labels of training portraits and clips, from which the parts of a new head are drawn."""

    def __init__(self, labels: Path) -> None:
        portraits, _ = _usable(labels / "ffhq.parquet")
        frames, clips = _usable(labels / "vfhq.parquet")
        self.appearance_N437 = np.concatenate([portraits, frames])  # camera and shape
        self.frames_M437 = frames
        self.clips = [np.flatnonzero(clips == clip) for clip in np.unique(clips)]

    def label(self, draw: np.random.Generator, jaw_share: float) -> np.ndarray:
        """A new label (437,): shape of one row, expression and jaw of a frame of a random clip, eyes of another frame, neck at rest."""
        label = self.appearance_N437[draw.integers(len(self.appearance_N437))].copy()
        clip = self.clips[draw.integers(len(self.clips))]
        label[MOTION] = self.frames_M437[clip[draw.integers(len(clip))], MOTION]
        label[EYES] = self.frames_M437[draw.integers(len(self.frames_M437)), EYES]
        label[NECK] = 0.0
        opened = draw.uniform(0.0, 0.2)
        if draw.random() < jaw_share:
            label[JAW.start] = opened
        return label

    def camera(self, draw: np.random.Generator) -> np.ndarray:
        """A fitted camera (25,)."""
        return self.appearance_N437[draw.integers(len(self.appearance_N437)), CAMERA]


def _usable(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N, 437) and clips (N,) of the usable rows of a table that are trained on, in the order of their keys."""
    if not path.is_file():
        raise UserError(f"render_genhead: {path} is missing. Run the stage fit_flame: dvc repro.")
    rows = [
        row for row in pq.read_table(path).to_pylist() if row["status"] == "ok" and row["split"] == "train"
    ]
    if not rows:
        raise UserError(
            f"render_genhead: no label in {path} is usable. Its column `reason` says why each was rejected."
        )
    rows.sort(key=lambda row: row["key"])
    return np.array([row["label"] for row in rows], np.float32), np.array([row["clip"] or "" for row in rows])


@dataclass(frozen=True)
class Head:
    """What one head is made of."""

    z: np.ndarray  # (z_dim,)
    label: np.ndarray  # (437,)
    condition: np.ndarray  # (325,): a fitted camera and the shape, what GenHead's mapping is told
    cameras: np.ndarray  # (V, 25)
    photo: int | None  # the portrait that view 0 shows, where it is one


def draw_head(
    index: int, section: RenderGenhead, seed: int, pools: Pools, known: dict[str, np.ndarray]
) -> Head:
    """The draws of head `index`; `known` holds z (N, z_dim), label (N, 437) and camera (N, 25) of the portraits that GenHead was trained on.

    With z: portraits it is one of those people, for a GenHead that has seen a few hundred of them has no clear idea of others; then
    `portrait_share` of the heads are a portrait as it is, seen as in the photo in view 0: Psi_3d will meet photos, and how they look is
    what a GenHead of small scale knows least. GenHead is told the pool camera of view 0, whether or not view 0 uses it (facts 3.4).
    """
    draw, draw_z = rng(seed, "genhead", index), rng(seed, "genhead-z", index)
    label = pools.label(draw, section.jaw_share)
    photo = None
    if section.z == "portraits":
        row = int(draw_z.integers(len(known["z"])))
        z, label[SHAPE] = known["z"][row], known["label"][row, SHAPE]
        if draw_z.random() < section.portrait_share:
            photo, label = row, known["label"][row].copy()
            label[NECK] = 0.0
    else:
        z = draw_z.normal(size=known["z"].shape[1]).astype(np.float32)
    pool_cameras = np.stack([pools.camera(draw) for _ in range(section.views)])
    look_at_cameras = np.stack([sample_look_at(draw) for _ in range(section.views)])
    looking = draw.random(section.views) < section.look_at_share
    cameras = np.where(looking[:, None], look_at_cameras, pool_cameras).astype(np.float32)
    if photo is not None:
        cameras[0] = known["camera"][photo]
    label[CAMERA] = cameras[0]
    return Head(z, label, np.concatenate([pool_cameras[0], label[SHAPE]]), cameras, photo)


class HeadRenderer:
    """The worker of one process: a unit's items are numbers of heads."""

    def __init__(self, params: Params, labels: Path, genhead: Path) -> None:
        self.section, self.seed, self.sizes = params.render_genhead, params.seed, params.networks
        self.device = choose_device(params.machine.device)
        self.pools = Pools(labels)
        self.known = {
            name: values.numpy()
            for name, values in load_weights(genhead / "portraits.safetensors")[0].items()
        }
        self.flame = Flame(head_model.load(params.flame.model)).to(self.device)
        self.genhead = GenHead(self.sizes, self.flame).to(self.device).eval().requires_grad_(False)
        self.genhead.load_state_dict(load_weights(genhead / "genhead.safetensors")[0])

    def __call__(self, unit: WorkUnit) -> tuple[Iterator[Sample], dict[str, Any]]:
        record = {"heads": len(unit.items), "foreground": 0.0}
        return self._samples(list(unit.items), record), record

    def _samples(self, indices: list[int], record: dict[str, Any]) -> Iterator[Sample]:
        head = self.section.views * self.sizes.rays**2 * self.sizes.samples
        step = min(max(SAMPLES_AT_ONCE // head, 1), HEADS_AT_ONCE)
        for start in range(0, len(indices), step):
            chosen = indices[start : start + step]
            heads = [draw_head(index, self.section, self.seed, self.pools, self.known) for index in chosen]
            for index, head, (fields, foreground) in zip(
                chosen, heads, self.render(chosen, heads), strict=True
            ):
                record["foreground"] += foreground
                yield f"{'head' if head.photo is None else PHOTO}-{index:08d}", fields

    @torch.inference_mode()
    def render(self, indices: list[int], heads: list[Head]) -> Iterator[tuple[dict[str, bytes], float]]:
        """Fields and share of foreground of each head."""
        z, label, condition, cameras = (
            torch.from_numpy(np.stack([getattr(head, name) for head in heads])).to(self.device)
            for name in ("z", "label", "condition", "cameras")
        )
        planes = self.genhead.planes(z, condition, self.section.truncation)
        cells = self.sizes.genhead.deformation_cells
        state = self.genhead.state(label, cameras, self.genhead.offsets(label, cells) if cells else None)
        rendering = self.genhead.render(
            planes, self.genhead.background_feature(z, self.section.truncation), state, cameras
        )
        shape = cameras.shape[:2]
        opacity, depth = (
            values[:, 0].unflatten(0, shape).cpu().numpy()
            for values in (rendering.opacity.clamp(0, 1), rendering.depth)
        )
        for i, head in enumerate(heads):
            if head.photo is not None:
                opacity[i, 0], known = (
                    self.known["opacity"][head.photo, 0],
                    self.known["depth"][head.photo, 0],
                )
                depth[i, 0] = np.where(np.isfinite(known), known, depth[i, 0])
        face = (state.eye_mask_BVnn + state.mouth_mask_BVnn == 0).cpu().numpy()
        points = np.stack(
            [
                sample_points(
                    head.cameras,
                    *seen,
                    rng(self.seed, "genhead-points", index),
                    self.section.points,
                    self.sizes.box,
                )
                for index, head, *seen in zip(indices, heads, face, opacity, depth, strict=True)
            ]
        )
        features = (
            self.genhead.plane_features(planes, torch.from_numpy(points).to(self.device), state).cpu().numpy()
        )
        points_70 = view_landmarks(self.flame, label, cameras).cpu().numpy()
        uv = position_map(
            self.flame, label.repeat_interleave(shape[1], 0), cameras.flatten(0, 1), self.sizes.image
        )
        views, maps, backgrounds = (
            to_uint8(picture).reshape(*shape, *picture.shape[2:], 3)
            for picture in (rendering.image, uv, rendering.background)
        )
        grey = (opacity * 255.0).round().astype(np.uint8)
        for i, head in enumerate(heads):
            if head.photo is not None:
                views[i, 0] = self.known["image"][head.photo]
            pictures = {f"view{v}.png": view for v, view in enumerate(views[i])} | {
                f"uv{v}.png": map_ for v, map_ in enumerate(maps[i])
            }
            pictures |= {
                "opacity.png": grey[i].reshape(-1, grey.shape[-1]),
                "background.png": backgrounds[i, 0],
            }
            arrays = {"cameras.npy": head.cameras, "label.npy": head.label, "landmarks.npy": points_70[i]}
            arrays |= {"depth.npy": depth[i].astype(np.float16), "points.npy": points[i].astype(np.float16)}
            arrays |= {"features.npy": features[i].astype(np.float16)}
            fields = {name: encode_png(picture) for name, picture in pictures.items()} | {
                name: encode_npy(array) for name, array in arrays.items()
            }
            yield fields, float(opacity[i].mean())


def sample_points(
    cameras_V25: np.ndarray,
    face_Vnn: np.ndarray,
    opacity_Vnn: np.ndarray,
    depth_Vnn: np.ndarray,
    draw: np.random.Generator,
    count: int,
    box: float,
) -> np.ndarray:
    """World points (count, 3) float32 on random rays of the views, at which the tri-planes are compared (L_T).

    Rays that meet an eye or the mouth (`face` is false) are left out, as what they show is not in the face planes. Every other point lies
    about the rendered surface, where the features show; the rest, and those whose ray misses the head, anywhere between near and far, as
    the official coarse samples (facts 2.2, 4.2).
    """
    side = face_Vnn.shape[-1]
    view, pixel = np.divmod(draw.choice(np.flatnonzero(face_Vnn), count), side * side)
    cameras = torch.from_numpy(cameras_V25)[None]
    origins, directions = (values[0].numpy() for values in camera_rays(cameras, side))
    distance = coarse_depths(cameras, 2, box, None)[0, view, 0].numpy() + draw.uniform(0.0, box, count)
    opacity, depth = (values.reshape(len(values), -1)[view, pixel] for values in (opacity_Vnn, depth_Vnn))
    close = (np.arange(count) % 2 == 0) & (opacity > 0.5)
    distance = np.where(close, depth + draw.normal(0.0, NEAR_SURFACE, count), distance)
    return (origins[view] + distance[:, None] * directions[view, pixel]).astype(np.float32)
