"""The four scales: one graph and one code with other numbers. `paper` holds the published ones (facts 1 to 5)."""

import copy
import dataclasses
import io
import re
from collections.abc import Mapping

from ruamel.yaml import YAML

from model.sizes import DiscriminatorSizes, GenHeadSizes, IdentitySizes, MotionSizes, PsiSizes, Sizes
from pipeline.config.params import Params, check_params
from pipeline.core.errors import UserError

SMOKE_SIZES = Sizes(
    image=32,
    rays=16,
    samples=8,
    samples_fine=8,
    plane_resolution=16,
    plane_channels=8,
    decoder_hidden=16,
    feature_channels=8,
    w_dim=32,
    superresolution_channels=(16,),
    planes="upright",
    psi=PsiSizes(8, (1, 1, 1, 1), 16, 8, 12, 16, 4, 32, 1, 2, 16, 1, 1, 2, 1, 16, 8, motion_start="routed"),
    genhead=GenHeadSizes(
        mapping_layers=2,
        channel_base=256,
        channel_max=16,
        background_resolution=16,
        background_mapping_layers=2,
        background_channel_base=128,
        background_channel_max=16,
        deformation_cells=8,
    ),
    discriminator=DiscriminatorSizes(channel_base=256, channel_max=16, mapping_layers=1),
    motion=MotionSizes(input=64, width=8, channels=16, depth=2, landmarks=68, feature=24, headpose=6, eye=6, emotion=10, mouth=16),
    identity=IdentitySizes(blocks=(1, 1, 1, 1), width=8, embedding=32),
)

DEMO_SIZES = Sizes(
    image=64,
    rays=32,
    samples=12,
    samples_fine=12,
    box=1.0,  # what a camera sees is 0.9 wide: the few texels of the planes are better spent there
    plane_resolution=32,
    plane_channels=16,
    decoder_hidden=32,
    feature_channels=16,
    w_dim=64,
    superresolution_channels=(32,),
    planes="upright",
    psi=PsiSizes(16, (1, 1, 1, 1), 64, 24, 32, 64, 16, 128, 1, 4, 48, 2, 2, 2, 2, 64, 16, motion_start="routed"),
    genhead=GenHeadSizes(
        mapping_layers=2,
        first_resolution=16,
        channel_base=2048,
        channel_max=128,
        background_resolution=32,
        background_mapping_layers=2,
        background_channel_base=512,
        background_channel_max=32,
        deformation_cells=16,
    ),
    discriminator=DiscriminatorSizes(channel_base=1024, channel_max=64, mapping_layers=2),
    motion=MotionSizes(input=64, width=16, channels=32, depth=2, landmarks=68, feature=32, headpose=6, eye=6, emotion=20, mouth=32),
    identity=IdentitySizes(blocks=(1, 1, 1, 1), width=8, embedding=64),
)

STUDY_SIZES = Sizes(
    image=128,
    rays=64,
    samples=16,
    samples_fine=16,
    plane_resolution=64,
    plane_channels=16,
    decoder_hidden=32,
    feature_channels=16,
    w_dim=128,
    superresolution_channels=(48,),
    planes="upright",
    psi=PsiSizes(24, (2, 2, 2, 2), 96, 32, 48, 128, 16, 192, 2, 4, 64, 2, 2, 2, 2, 96, 24, motion_start="routed"),
    genhead=GenHeadSizes(
        mapping_layers=2,
        channel_base=2048,
        channel_max=96,
        background_resolution=64,
        background_mapping_layers=2,
        background_channel_base=1024,
        background_channel_max=64,
        deformation_cells=20,
    ),
    discriminator=DiscriminatorSizes(channel_base=2048, channel_max=96, mapping_layers=2),
    motion=MotionSizes(input=112, width=16, channels=48, depth=3, landmarks=68, feature=64, headpose=6, eye=6, emotion=20, mouth=64),
    identity=IdentitySizes(blocks=(2, 2, 2, 2), width=24, embedding=128),
)

DEMO = {
    "scale": "demo",
    "seed": 0,
    "threads": 2,
    "machine": {"workers": 2, "device": "auto", "ray_address": "", "object_store_mb": 150, "activation_checkpointing": False},
    "flame": {"model": "standin"},
    "networks": DEMO_SIZES,
    "ingest": {
        "source": "generated",
        "portraits": "data/portraits",
        "clips": "data/clips",
        "identities": 320,
        "photos": 2,
        "train_clips": 84,
        "validation_clips": 8,
        "test_clips": 12,
        "frames": 10,
        "portrait_size": 256,
        "clip_size": 256,
        "fps": 5,
        "min_face": 85,
        "min_frames": 8,
        "detection_score": 0.5,
        "smooth_crop": True,
        "validation_share": 0.1,
        "test_share": 0.1,
        "shard_size": 128,
    },
    "fit_flame": {
        "camera_steps": 3,
        "steps": 6,
        "shape_weight": 1e-3,
        "expression_weight": 1e-3,
        "temporal_weight": 0.1,
        "max_error": 0.1,
    },
    "pretrain": {
        "source": "generated",
        "official": "data/official",
        "perception": {"steps": 260, "batch": 32, "learning_rate": 1e-3},
        "motion": {"steps": 400, "batch": 16, "learning_rate": 4e-3},
        "genhead": {"steps": 800, "batch": 8, "learning_rate": 0.015},
    },
    "render_genhead": {
        "heads": 1200,
        "views": 2,
        "points": 512,
        "look_at_share": 0.8,
        "jaw_share": 0.5,
        "z": "portraits",
        "portrait_share": 0.75,
        "truncation": 0.95,
        "shard_size": 64,
    },
    "train_psi3d": {
        "images": 5000,
        "batch": 4,
        "learning_rate": 2e-3,
        "equalised_learning_rate_scale": 12.0,
        "adam_eps": 1e-8,
        "warmup": 400,
        "decay_until": 5000,
        "ema_half_life": 500,
        "adversarial_from": 5000,
        "checkpoint_every": 1000,
        "preview_every": 2500,
        "whole_every": 4,
        "whole_from": 0,
        "init": "genhead",
        "weights": {"l1": 1.0, "lpips": 0.5, "identity": 0.5, "adversarial": 0.01, "depth": 1.0, "opacity": 1.0, "planes": 0.02},
        "identity_from": 3400,
        "depth_until": 5000,
        "planes_until": 1250,
    },
    "render_views": {"views": 4, "shard_size": 64, "min_psnr": 12.0, "min_coverage": 0.5, "min_identity": 0.0},
    "train": {
        "images": 9600,
        "batch": 8,
        "learning_rate": 1e-3,
        "equalised_learning_rate_scale": 12.0,
        "adam_eps": 1e-8,
        "warmup": 400,
        "decay_until": 9600,
        "ema_half_life": 500,
        "adversarial_from": 9600,
        "checkpoint_every": 2000,
        "preview_every": 2400,
        "whole_every": 3,
        "whole_from": 6400,
        "motion_learning_rate_scale": 2.5,
        "init": "psi3d",
        "motion": "emot",
        "substitute_p": 0.1,
        "substitute_q": 0.8,
        "clips": 0,
        "face_weight": 10.0,
        "weights": {"l1": 1.0, "lpips": 2.0, "identity": 1.0, "adversarial": 0.01, "opacity": 1.0},
    },
    "evaluate": {"split": "test", "self_frames": 12, "cross_pairs": 16, "frontal_drivers": 2, "novel_views": 3, "videos": 2},
}

SMOKE = {
    "scale": "smoke",
    "threads": 1,
    "machine": {"workers": 0},
    "networks": SMOKE_SIZES,
    "ingest": {
        "identities": 24,
        "photos": 2,
        "train_clips": 10,
        "validation_clips": 2,
        "test_clips": 2,
        "frames": 8,
        "shard_size": 16,
    },
    "pretrain": {"perception": {"steps": 60, "batch": 8}, "motion": {"steps": 80, "batch": 4}, "genhead": {"steps": 200, "batch": 4}},
    "render_genhead": {"heads": 48, "points": 64, "shard_size": 6},
    "train_psi3d": {
        "images": 1200,
        "batch": 4,
        "warmup": 40,
        "decay_until": 1200,
        "ema_half_life": 60,
        "adversarial_from": 1120,
        "checkpoint_every": 400,
        "preview_every": 600,
        "whole_every": 2,
        "whole_from": 0,
        "identity_from": 800,
        "depth_until": 1200,
        "planes_until": 400,
        "weights": {"lpips": 0.1},  # a trunk that has hardly learnt anything
    },
    "render_views": {"views": 2, "shard_size": 12, "min_psnr": 0.0, "min_coverage": 0.0, "min_identity": -1.0},  # untrained: keep all
    "train": {
        "images": 2400,
        "batch": 8,
        "warmup": 40,
        "decay_until": 2400,
        "ema_half_life": 100,
        "adversarial_from": 2300,
        "checkpoint_every": 800,
        "preview_every": 800,
        "whole_every": 2,
        "whole_from": 1600,
        "weights": {"lpips": 0.5},
    },
    "evaluate": {"self_frames": 3, "cross_pairs": 2, "frontal_drivers": 2, "novel_views": 2, "videos": 1},
}

STUDY = {
    "scale": "study",
    "networks": STUDY_SIZES,
    "ingest": {"identities": 2000, "train_clips": 200, "validation_clips": 12, "test_clips": 20, "frames": 48},
    "pretrain": {
        "perception": {"steps": 3000},
        "motion": {"steps": 4000},
        "genhead": {"steps": 8000},
    },
    "render_genhead": {"heads": 8192, "views": 3, "points": 1024},
    "train_psi3d": {
        "images": 100_000,
        "batch": 8,
        "decay_until": 100_000,
        "ema_half_life": 2000,
        "adversarial_from": 60_000,
        "checkpoint_every": 10_000,
        "preview_every": 20_000,
        "identity_from": 20_000,
        "depth_until": 20_000,
        "planes_until": 20_000,
    },
    "train": {
        "images": 20_000,
        "batch": 8,
        "decay_until": 20_000,
        "ema_half_life": 2000,
        "adversarial_from": 10_000,
        "checkpoint_every": 5000,
        "preview_every": 5000,
    },
    "evaluate": {"self_frames": 24, "cross_pairs": 64, "frontal_drivers": 4, "videos": 4},
}

PAPER = {
    "scale": "paper",
    "machine": {"object_store_mb": 8000, "activation_checkpointing": True},
    "flame": {"model": "data/flame/generic_model.pkl"},
    "networks": Sizes(),
    "ingest": {
        "source": "folder",
        "identities": 70_000,  # FFHQ
        "photos": 1,
        "train_clips": 10_000,
        "validation_clips": 100,
        "test_clips": 100,
        "frames": 200,
        "portrait_size": 1024,
        "clip_size": 512,
        "fps": 25,
        "validation_share": 0.01,
        "test_share": 0.01,
        "shard_size": 512,
    },
    "fit_flame": {"camera_steps": 5, "steps": 20},
    "pretrain": {
        "source": "official",
        "official": "data/official",
        "genhead": {"steps": 781_250, "batch": 32, "learning_rate": 2.5e-3},  # 25M images
    },
    "render_genhead": {
        "heads": 1_000_000,
        "views": 3,
        "points": 4000,
        "look_at_share": 0.5,
        "z": "normal",
        "portrait_share": 0.0,
        "shard_size": 256,
    },
    "train_psi3d": {
        "images": 10_000_000,
        "batch": 32,
        "learning_rate": 1e-4,
        "equalised_learning_rate_scale": 1.0,
        "adam_eps": 1e-5,
        "warmup": 0,
        "decay_until": 0,
        "ema_half_life": 10_000,
        "adversarial_from": 1_000_000,
        "checkpoint_every": 400_000,
        "preview_every": 40_000,
        "whole_every": 1,
        "whole_from": 0,
        "init": "scratch",
        "identity_from": 400_000,
        "depth_until": 400_000,
        "planes_until": 400_000,
        "weights": {"lpips": 1.0, "identity": 1.0, "opacity": 0.3, "planes": 0.1},
    },
    # The published training takes every frame: these only keep out where Psi_3d failed or saw another face (ArcFace: strangers are near 0).
    "render_views": {"views": 4, "shard_size": 256, "min_psnr": 12.0, "min_coverage": 0.7, "min_identity": 0.2},
    "train": {
        "images": 6_000_000,
        "batch": 32,
        "learning_rate": 1e-4,
        "equalised_learning_rate_scale": 1.0,
        "adam_eps": 1e-5,
        "warmup": 0,
        "decay_until": 0,
        "ema_half_life": 10_000,
        "adversarial_from": 0,
        "checkpoint_every": 400_000,
        "preview_every": 40_000,
        "whole_every": 1,
        "whole_from": 0,
        "face_weight": 0.0,
        "weights": {"lpips": 1.0, "opacity": 0.0},  # opacity is not in Eq. 5
    },
    "evaluate": {"self_frames": 200, "cross_pairs": 1000, "frontal_drivers": 10, "novel_views": 3, "videos": 10},
}

SCALES = {"smoke": SMOKE, "demo": {}, "study": STUDY, "paper": PAPER}

COMMENTS = {
    "scale": "a name for people; `psi4d scale NAME` writes the numbers of another one",
    "threads": "of torch in training and fitting; part of the result",
    "machine": "never changes a result, so no stage depends on it",
    "machine.workers": "Ray actors; 0 works in the process itself",
    "machine.device": "auto, cpu or cuda",
    "machine.ray_address": "of a running cluster; empty starts one here",
    "machine.activation_checkpointing": "of Psi in training: less memory, more time",
    "flame.model": "standin, or the path of the licensed generic_model.pkl",
    "networks": "sizes, see model/sizes.py; what is left out is as published",
    "networks.image": "pixels of the final image",
    "networks.planes": "published, or upright: they lie like the portrait, which shortens training from nothing a lot",
    "networks.psi.motion_start": "published, or routed: the motion is heard from the first images on",
    "networks.rays": "pixels of the volume rendering",
    "networks.superresolution_channels": "one entry per doubling from rays to image",
    "ingest.source": "generated: heads of people who do not exist; folder: your files",
    "ingest.portraits": "your folders, searched recursively",
    "ingest.photos": "per identity",
    "ingest.frames": "per clip; of a longer real clip, evenly spread over its first 200",
    "ingest.min_face": "pixels; smaller faces are rejected",
    "ingest.validation_clips": "people on whom parameters are chosen; no network is trained on them",
    "ingest.validation_share": "of the clips in a folder",
    "ingest.test_share": "of the clips in a folder",
    "fit_flame.camera_steps": "Gauss-Newton steps on rotation and camera alone, then on everything",
    "fit_flame.max_error": "over the inter-ocular distance; above it a fit is rejected",
    "pretrain.source": "generated: train small networks here; official: import the published weights",
    "pretrain.official": "folder into which `psi4d import` put the official weights",
    "render_genhead.jaw_share": "of the heads get an opened jaw",
    "render_genhead.z": "portraits: the codes GenHead was fitted with; normal: fresh draws",
    "render_genhead.portrait_share": "with z portraits: of the heads are a portrait as it is, the photo being view 0",
    "train_psi3d.images": "seen in training; so are *_from, *_until, checkpoint_every, preview_every and ema_half_life",
    "train_psi3d.equalised_learning_rate_scale": "of weights of deviation 1 (decoder, super-resolution); 1 as published",
    "train_psi3d.adam_eps": "1e-5 as published; in a short run it swallows the small gradients of the motion layers",
    "train_psi3d.adversarial_from": "never, if not below images",
    "train_psi3d.whole_every": "steps; the others render a quarter of the rays. 1 is never, as published",
    "train.whole_from": "until then all steps are thin",
    "train_psi3d.decay_until": "half a cosine of the learning rate; 0 is none, as published",
    "render_views.min_psnr": "dB; of the frame's own view, inside its mask. Worse frames stay in the cache, but are not trained on",
    "render_views.min_coverage": "share of the mask that the rendered head covers",
    "render_views.min_identity": "cosine of face recognition, -1 to 1",
    "train.motion_learning_rate_scale": "of the motion layers (facts 1.8)",
    "train.init": "psi3d or random",
    "train.motion": "emot (learned) or flame (parameters)",
    "train.substitute_p": "share of driving images that are the real frame",
    "train.substitute_q": "share of targets that are the real frame",
    "train.clips": "0 is all",
    "train.face_weight": "what a pixel at brows, eyes and mouth counts more in L_1; 0 as published",
    "evaluate.split": "validation to choose parameters, test to report",
    "evaluate.self_frames": "per clip",
    "evaluate.frontal_drivers": "for Cons.",
}


def scale_data(name: str) -> dict:
    """All keys of params.yaml at the scale `name`, as plain dicts. Raises UserError for an unknown name."""
    if name not in SCALES:
        raise UserError(f"there is no scale {name!r}; choose one of {', '.join(SCALES)}.")
    data = _merged(DEMO, SCALES[name])
    data["networks"] = _plain(dataclasses.asdict(data["networks"]))
    return data


def scale_params(name: str) -> Params:
    """Params of the scale `name`."""
    return check_params(scale_data(name), f"scale {name}")


def scale_text(name: str) -> str:
    """The params.yaml of the scale `name`, with comments."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.representer.add_representer(list, lambda to, items: to.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True))
    yaml.dump(scale_data(name), stream)
    lines, path = [], []
    for line in stream.getvalue().splitlines():
        key = re.match(r"( *)(\w+):", line)
        if key:
            path = [*path[: len(key[1]) // 2], key[2]]
            comment = COMMENTS.get(".".join(path))
            if not key[1] and line.endswith(":"):
                lines.append("")
            line += f"  # {comment}" if comment else ""
        lines.append(line)
    return "\n".join(lines) + "\n"


def _merged(base: dict, changes: Mapping) -> dict:
    """`base` with `changes` put over it, section by section."""
    merged = copy.deepcopy(base)
    for key, value in changes.items():
        merged[key] = _merged(merged[key], value) if isinstance(value, Mapping) else copy.deepcopy(value)
    return merged


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
