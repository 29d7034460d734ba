"""Stage render_genhead: synthetic multi-view images that teach Psi_3d (paper section 4.2; facts 3.4, 3.5).

Every draw depends on (seed, head) alone. What a sample holds is said by `Heads` in
pipeline/store/samples.py. Its key is `head-{number}`, or `photo-{number}` where view 0 is a portrait, with
the opacity and the depth that are known of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from model.genhead import GenHead
from model.head.flame import Flame
from model.volume.renderer import camera_rays, coarse_depths
from pipeline.config.disk import head_bytes
from pipeline.config.params import Params, RenderGenhead
from pipeline.core.device import choose_device
from pipeline.core.errors import UserError
from pipeline.core.pictures import to_uint8
from pipeline.core.seeds import rng
from pipeline.engine.fingerprint import code_fingerprint, inputs_fingerprint
from pipeline.engine.job import Job
from pipeline.engine.mapped import mapped_folder
from pipeline.engine.scratch import publish, scratch_folder
from pipeline.engine.work_unit import WorkUnit, units_of
from pipeline.geometry import head_model
from pipeline.geometry.camera import sample_look_at
from pipeline.geometry.label import Label
from pipeline.networks.weights import frozen, mapped_tensors
from pipeline.render.landmarks import view_landmarks
from pipeline.render.position_map import position_map
from pipeline.store.samples import PHOTO, Heads, has_geometry
from pipeline.store.sealed import check_sealed
from pipeline.store.shards import Sample
from pipeline.store.tables import OK, matrix, read_batches, read_columns

# What one pass may hold: coarse samples, as far as a head allows, and heads.
SAMPLES_AT_ONCE = 1 << 19
HEADS_AT_ONCE = 8
PORTRAITS = "portraits.safetensors"  # what GenHead was trained on
# People of the other splits must stay unseen by every network.
TRAINED_ON = (pc.field("status") == OK) & (pc.field("split") == "train")
NEAR_SURFACE = 0.08  # world units, standard deviation of points about the rendered surface


def render_genhead(
    params: Params,
    labels: Path,
    genhead: Path,
    out: Path,
) -> dict[str, Any]:
    """Render all heads into shards in `out`; returns the metrics.

    `labels` and `genhead` are the folders of those stages. Raises UserError when a label table or the
    weights are missing or no label is usable.
    """
    work = job(params, labels, genhead)
    scratch = scratch_folder(work.label, work.mark)
    done = work.run(scratch, params.machine)
    publish(scratch, out)
    heads = sum(result.record.get("heads", 0) for result in done)
    foreground = sum(result.record.get("foreground", 0.0) for result in done)
    return {
        "heads": heads,
        "given_up": sum(len(result.rejects) for result in done),
        "images": heads * params.render_genhead.views,
        "shards": len(done),
        "bytes": sum(result.shard.bytes for result in done if result.shard),
        "foreground": round(foreground / heads, 4),
    }


def job(params: Params, labels: Path, genhead: Path) -> Job:
    """The units of the stage and their worker. Raises UserError as `render_genhead`."""
    section = params.render_genhead
    # Missing labels and damaged portraits are said here, once and before any worker starts.
    pools = pool_folder(labels)
    values = (section, params.networks, params.flame, params.seed)
    inputs = inputs_fingerprint(*values, labels, genhead)
    check_sealed(genhead / PORTRAITS)
    return Job(
        label="render_genhead",
        units=units_of(
            "heads",
            list(range(section.heads)),
            section.shard_size,
            inputs,
            code_fingerprint(__file__),
        ),
        make_worker=partial(HeadRenderer, params, pools, genhead.resolve()),
        counts={"heads": 1, "images": section.views},
        item_bytes=head_bytes(params),
        gpu=True,
    )


def pool_folder(labels: Path) -> Path:
    """The fitted labels of training portraits and clips as arrays, which all workers share.

    Raises UserError when a table is missing or has no usable label.
    """
    tables = tuple(labels / f"{name}.parquet" for name in ("ffhq", "vfhq"))
    return mapped_folder("labels", partial(_write_pools, tables), __file__, *tables)


def _write_pools(tables: tuple[Path, ...], folder: Path) -> None:
    """Write labels.npy, those of portraits and behind them those of frames, and clips.npy."""
    known = [read_columns(path, "fit_flame", ["key", "clip"], TRAINED_ON) for path in tables]
    for path, rows in zip(tables, known, strict=True):
        if not len(rows):
            raise UserError(
                f"render_genhead: no label in {path} is usable. "
                "Its column `reason` says why each was rejected."
            )
    shape = (sum(map(len, known)), Label.SIZE)
    labels = np.lib.format.open_memmap(folder / "labels.npy", "w+", np.float32, shape)
    first = 0
    for path, rows in zip(tables, known, strict=True):
        # In the order of their keys, whatever that of the table.
        order = pc.sort_indices(rows["key"]).to_numpy()
        places = np.empty_like(order)
        places[order] = np.arange(first, first + len(order))
        start = 0
        for batch in read_batches(path, "fit_flame", ["status", "split", "label"]):
            part = pa.Table.from_batches([batch]).filter(TRAINED_ON)
            # The frames of a split lie together: pieces of a table may have none of this one.
            if not len(part):
                continue
            labels[places[start : start + len(part)]] = matrix(part, "label")
            start += len(part)
        first += len(order)
        names = rows["clip"].take(order).to_numpy()
    # Of the frames, which come last.
    _, clips = np.unique(names.astype(str), return_inverse=True)
    np.save(folder / "clips.npy", clips.astype(np.int32))


class Pools:
    """The fitted labels of training portraits and clips, from which the parts of a new head are drawn."""

    def __init__(self, folder: Path) -> None:
        """`folder` is that of `pool_folder`."""
        self.appearance_N437 = np.load(folder / "labels.npy", mmap_mode="r")  # camera and shape
        clips = np.load(folder / "clips.npy")
        self.frames_M437 = self.appearance_N437[-len(clips) :]
        self.by_clip = np.argsort(clips, kind="stable")
        self.bounds = np.concatenate([[0], np.cumsum(np.bincount(clips))])

    def label(self, draw: np.random.Generator, jaw_share: float) -> np.ndarray:
        """A new label (437,).

        The shape comes from one row, expression and jaw from a frame of a random clip, the eyes from
        another frame; the neck is at rest. With probability `jaw_share` the jaw is opened by up to 0.2 rad
        instead (facts 3.4).
        """
        person = draw.integers(len(self.appearance_N437))
        clip = draw.integers(len(self.bounds) - 1)
        frames = self.by_clip[self.bounds[clip] : self.bounds[clip + 1]]
        face = frames[draw.integers(len(frames))]
        gaze = draw.integers(len(self.frames_M437))
        label = self.appearance_N437[person].copy()
        label[Label.MOVING] = self.frames_M437[face, Label.MOVING]
        label[Label.EYES] = self.frames_M437[gaze, Label.EYES]
        label[Label.NECK] = 0.0
        # Drawn in any case, so that the draws after it are the same whatever the share.
        opened = draw.uniform(0.0, 0.2)
        if draw.random() < jaw_share:
            label[Label.JAW.start] = opened
        return label

    def camera(self, draw: np.random.Generator) -> np.ndarray:
        """A fitted camera (25,)."""
        row = draw.integers(len(self.appearance_N437))
        return self.appearance_N437[row, Label.CAMERA]


@dataclass(frozen=True)
class Head:
    """What one head is made of."""

    z: np.ndarray  # (z_dim,)
    label: np.ndarray  # (437,)
    condition: np.ndarray  # (325,): a fitted camera and the shape, what GenHead's mapping is told
    cameras: np.ndarray  # (V, 25)
    photo: int | None  # the portrait that view 0 shows, where it is one


def draw_head(
    index: int,
    section: RenderGenhead,
    seed: int,
    pools: Pools,
    known: dict[str, np.ndarray],
) -> Head:
    """The draws of head `index`.

    `known` holds z (N, z_dim), label (N, 437) and camera (N, 25) of the portraits that GenHead was trained
    on. With `z: portraits` a head is one of those people, for a GenHead that has seen a few hundred of them
    has no clear idea of others. Then `portrait_share` of the heads are a portrait as it is, seen as in the
    photo in view 0: Psi_3d will meet photos, and how they look is what a GenHead of small scale knows
    least. GenHead is told the pool camera of view 0, whether or not view 0 uses it (facts 3.4).
    """
    # The codes have a generator of their own, so that poses do not depend on the people.
    draw = rng(seed, "genhead", index)
    draw_z = rng(seed, "genhead-z", index)
    label = pools.label(draw, section.jaw_share)
    photo = None
    if section.z == "portraits":
        row = int(draw_z.integers(len(known["z"])))
        z = known["z"][row]
        label[Label.SHAPE] = known["label"][row, Label.SHAPE]
        if draw_z.random() < section.portrait_share:
            photo = row
            label = known["label"][row].copy()
            label[Label.NECK] = 0.0
    else:
        dims = known["z"].shape[1]
        z = draw_z.normal(size=dims).astype(np.float32)
    # Of both kinds of cameras there are enough for all views, so that no draw depends on the share.
    fitted = [pools.camera(draw) for _ in range(section.views)]
    drawn = [sample_look_at(draw) for _ in range(section.views)]
    looking = draw.random(section.views) < section.look_at_share
    cameras = np.where(looking[:, None], np.stack(drawn), np.stack(fitted))
    cameras = cameras.astype(np.float32)
    if photo is not None:
        cameras[0] = known["camera"][photo]
    label[Label.CAMERA] = cameras[0]
    condition = np.concatenate([fitted[0], label[Label.SHAPE]])
    return Head(z, label, condition, cameras, photo)


class HeadRenderer:
    """The worker of one process: a unit's items are numbers of heads."""

    def __init__(self, params: Params, pools: Path, genhead: Path) -> None:
        self.section = params.render_genhead
        self.seed = params.seed
        self.sizes = params.networks
        self.device = choose_device(params.machine.device)
        self.pools = Pools(pools)
        self.known = mapped_tensors(genhead / PORTRAITS)
        head = head_model.load(params.flame.model)
        self.flame = Flame(head).to(self.device)
        network = GenHead(self.sizes, self.flame)
        self.genhead = frozen(network, genhead / "genhead.safetensors", self.device)

    def __call__(self, unit: WorkUnit) -> tuple[Iterator[Sample], dict[str, Any]]:
        record = {"heads": len(unit.items), "foreground": 0.0}
        return self._samples(list(unit.items), record), record

    def _samples(
        self,
        indices: list[int],
        record: dict[str, Any],
    ) -> Iterator[Sample]:
        # All views of a head are rendered in one pass: memory allows fewer heads the larger they are.
        samples_a_head = self.section.views * self.sizes.rays**2 * self.sizes.samples
        fitting = max(SAMPLES_AT_ONCE // samples_a_head, 1)
        step = min(fitting, HEADS_AT_ONCE)
        for start in range(0, len(indices), step):
            chosen = indices[start : start + step]
            heads = [self._draw(index) for index in chosen]
            rendered = self.render(chosen, heads)
            for index, head, (fields, foreground) in zip(chosen, heads, rendered, strict=True):
                record["foreground"] += foreground
                kind = "head" if head.photo is None else PHOTO
                yield f"{kind}-{index:08d}", fields

    def _draw(self, index: int) -> Head:
        return draw_head(index, self.section, self.seed, self.pools, self.known)

    @torch.inference_mode()
    def render(
        self,
        indices: list[int],
        heads: list[Head],
    ) -> Iterator[tuple[dict[str, bytes], float]]:
        """Fields and share of foreground of each head."""
        z = self._stack([head.z for head in heads])
        label = self._stack([head.label for head in heads])
        condition = self._stack([head.condition for head in heads])
        cameras = self._stack([head.cameras for head in heads])
        shape = cameras.shape[:2]
        truncation = self.section.truncation

        # One tri-plane and one background serve all views of a head.
        planes = self.genhead.planes(z, condition, truncation)
        cells = self.sizes.genhead.deformation_cells
        offsets = self.genhead.offsets(label, cells) if cells else None
        state = self.genhead.state(label, cameras, offsets)
        background = self.genhead.background_feature(z, truncation)
        rendering = self.genhead.render(planes, background, state, cameras)
        opacity = _maps(rendering.opacity.clamp(0, 1), shape)
        depth = _maps(rendering.depth, shape)
        images = _pictures(rendering.image, shape)
        # A photo takes the place of GenHead's view before anything is derived from it.
        for i, head in enumerate(heads):
            if head.photo is not None:
                self._show_photo(head.photo, images[i], opacity[i], depth[i])

        # Of eyes and mouth the face planes know nothing, so no point lies on their rays.
        inner = state.eye_mask_BVnn + state.mouth_mask_BVnn
        face = (inner == 0).cpu().numpy()
        points = []
        for i, (index, head) in enumerate(zip(indices, heads, strict=True)):
            draw = rng(self.seed, "genhead-points", index)
            chosen = self._points(draw, head, face[i], opacity[i], depth[i])
            points.append(chosen)
        where = self._stack(points)
        on_planes = self.genhead.plane_features(planes, where, state)
        features = on_planes.cpu().numpy()
        seen = view_landmarks(self.flame, label, cameras)
        landmarks = seen.cpu().numpy()
        label_of_views = label.repeat_interleave(shape[1], 0)
        uv = position_map(
            self.flame,
            label_of_views,
            cameras.flatten(0, 1),
            self.sizes.image,
        )
        maps = _pictures(uv, shape)
        backgrounds = _pictures(rendering.background, shape)
        grey = (opacity * 255.0).round().astype(np.uint8)
        # Half precision halves the shards; at the distance of the head a step of depth is 0.004 world units.
        for i, (index, head) in enumerate(zip(indices, heads, strict=True)):
            known = slice(None) if has_geometry(index, self.section.geometry_share) else slice(0)
            fields = Heads.encode(
                self.section.pictures.model_dump(),
                view=images[i],
                uv=maps[i],
                opacity=grey[i].reshape(-1, grey.shape[-1]),
                depth=depth[i, :, known, known].astype(np.float16),
                background=backgrounds[i, 0],
                cameras=head.cameras,
                label=head.label,
                landmarks=landmarks[i],
                points=points[i][known].astype(np.float16),
                features=features[i][known].astype(np.float16),
            )
            yield fields, float(opacity[i].mean())

    def _stack(self, rows: list[np.ndarray]) -> Tensor:
        stacked = np.stack(rows)
        return torch.from_numpy(stacked).to(self.device)

    def _show_photo(
        self,
        photo: int,
        images_VSS3: np.ndarray,
        opacity_Vnn: np.ndarray,
        depth_Vnn: np.ndarray,
    ) -> None:
        """Put a portrait into view 0, with what is known of it; GenHead's depth stays where none is known."""
        images_VSS3[0] = self.known["image"][photo]
        opacity_Vnn[0] = self.known["opacity"][photo, 0]
        known = self.known["depth"][photo, 0]
        depth_Vnn[0] = np.where(np.isfinite(known), known, depth_Vnn[0])

    def _points(
        self,
        draw: np.random.Generator,
        head: Head,
        face_Vnn: np.ndarray,
        opacity_Vnn: np.ndarray,
        depth_Vnn: np.ndarray,
    ) -> np.ndarray:
        return sample_points(
            head.cameras,
            face_Vnn,
            opacity_Vnn,
            depth_Vnn,
            draw,
            self.section.points,
            self.sizes.box,
        )


def _maps(values_N1nn: Tensor, shape: torch.Size) -> np.ndarray:
    """B * V maps of one channel as (B, V, n, n)."""
    maps = values_N1nn[:, 0].unflatten(0, shape)
    return maps.cpu().numpy()


def _pictures(image_NCSS: Tensor, shape: torch.Size) -> np.ndarray:
    """B * V images in [-1, 1] as pictures (B, V, S, S, 3) uint8."""
    pictures = to_uint8(image_NCSS)
    return pictures.reshape(*shape, *pictures.shape[1:])


def sample_points(
    cameras_V25: np.ndarray,
    face_Vnn: np.ndarray,
    opacity_Vnn: np.ndarray,
    depth_Vnn: np.ndarray,
    draw: np.random.Generator,
    count: int,
    box: float,
) -> np.ndarray:
    """World points (count, 3) float32 on random rays of the views, where tri-planes are compared (L_T).

    Rays that meet an eye or the mouth (`face` is false) are left out, as what they show is not in the face
    planes. Every other point lies about the rendered surface, where the features show; the rest, and those
    whose ray misses the head, anywhere between near and far, as the official coarse samples (facts 2.2,
    4.2).
    """
    side = face_Vnn.shape[-1]
    chosen = draw.choice(np.flatnonzero(face_Vnn), count)
    view, pixel = np.divmod(chosen, side * side)
    cameras = torch.from_numpy(cameras_V25)[None]
    origins_1V3, directions_1VR3 = camera_rays(cameras, side)
    origins = origins_1V3[0].numpy()
    directions = directions_1VR3[0].numpy()
    depths = coarse_depths(cameras, 2, box, None)
    nearest = depths[0, view, 0].numpy()
    anywhere = nearest + draw.uniform(0.0, box, count)
    # Where a ray misses the head there is no surface to lie near.
    views = len(face_Vnn)
    opacity = opacity_Vnn.reshape(views, -1)[view, pixel]
    surface = depth_Vnn.reshape(views, -1)[view, pixel]
    every_other = np.arange(count) % 2 == 0
    close = every_other & (opacity > 0.5)
    about = surface + draw.normal(0.0, NEAR_SURFACE, count)
    distance = np.where(close, about, anywhere)
    along = distance[:, None] * directions[view, pixel]
    return (origins[view] + along).astype(np.float32)
