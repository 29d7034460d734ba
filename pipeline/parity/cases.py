"""What each parity fixture holds, made again by our networks at paper size (section 4 of tests/published/parity/README.md).

A case is a function of the number rule and of the fixture; it returns an array for every name that the fixture should have.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.adversary.discriminator import Discriminator
from model.genhead import GenHead, HeadState
from model.head.deform import NeckField
from model.head.flame import Flame
from model.judges.identity import FIVE_OF_70, IdentityNet
from model.judges.identity import TEMPLATE as IDENTITY_TEMPLATE
from model.layers.warp import alignment, cut, similarity
from model.psi.motion_encoder import EYES_AND_MOUTH, MotionEncoder, motion_crop
from model.psi.network import Psi
from model.sizes import Sizes
from model.volume.colour_decoder import ColourDecoder
from model.volume.planes import sample_planes
from model.volume.renderer import Deform, camera_rays, render_rays
from model.volume.superresolution import SuperResolution
from pipeline.geometry.camera import project
from pipeline.geometry.standin import standin
from pipeline.parity.file import Stored
from pipeline.parity.head import fake_head, landmark_embedding
from pipeline.parity.numbers import AS_CONSTRUCTED, EVERY_LAYER, NumberRule, camera

PAPER = Sizes()
PSI_EQUALISED = ("superresolution.", "decoder.")
CAMERA_B = camera(-0.5, -0.2, 4.0, 0.0)  # of the renderer; the other one is the default
# Stored inputs of psi_v2_posed and their shapes. No rule makes them, so that a thinned fixture keeps them whole.
NECK_GRIDS = {"grid24_offset": (3, 24, 24, 24), "grid24_dist2": (1, 24, 24, 24), "grid8_offset": (3, 8, 8, 8)}

Found = Tensor | np.ndarray | str  # a text says which file of others the array cannot be made without


@dataclass
class Fixture:
    """A fixture as it was read. A case asks it for what is stored because no rule makes it."""

    folder: Path
    arrays: dict[str, Stored]
    inputs: set[str] = field(default_factory=set)  # names of the arrays that were asked for as such

    def given(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A stored input with a batch of one in front, float32. Raises ValueError when it is missing or has another shape."""
        values = self.arrays[name].values if name in self.arrays else np.zeros(0)
        if values.shape != shape or values.dtype.kind != "f" or not np.isfinite(values).all():
            raise ValueError(
                f"the input {name} is missing or is no array {shape} of finite floats, so that nothing can be compared"
            )
        self.inputs.add(name)
        return torch.from_numpy(values.astype(np.float32))[None]


ParityCase = Callable[[NumberRule, Fixture], dict[str, Found]]


@contextmanager
def recorded(**modules: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collects the last output of each module, by name, while it is entered."""
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.__setitem__(name, output.detach())
        )
        for name, module in modules.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def statistics(image_XHW: Tensor) -> Tensor:
    """Mean, population deviation and absolute maximum of each channel, (..., 3), in double precision."""
    x = image_XHW.double().flatten(-2)
    return torch.stack([x.mean(-1), x.std(-1, correction=0), x.abs().amax(-1)], -1)


def rule_check(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    with torch.device("meta"):
        entries = Psi(PAPER).state_dict()
    shapes = {key: tuple(value.shape) for key, value in entries.items() if not key.endswith(AS_CONSTRUCTED)}
    keys = [str(key) for key in fixture.arrays["keys"].values.flat] if "keys" in fixture.arrays else []
    if not keys or not shapes.keys() >= set(keys):
        raise ValueError(
            "keys is missing or names something else than entries of Psi, so that nothing can be compared"
        )
    fixture.inputs.add("keys")
    values = []
    for key in keys:
        weight = rule.weight(key, shapes[key], key.startswith(PSI_EQUALISED))
        values.append(weight.astype(np.float64).ravel())  # pyrefly: ignore[missing-attribute]
    return {
        "unit_test": rule.unit("test", (16,)),
        "image_app": rule.image("img_app", 512)[0, :, ::64, ::64],
        "camera_default": camera(),
        "camera_b": CAMERA_B,
        "first4": np.stack([np.resize(value, 4) for value in values]),
        "sum_float64": np.array([value.sum() for value in values]),
        "norm_float64": np.array([np.linalg.norm(value) for value in values]),
    }


def renderer(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    decoder = ColourDecoder(PAPER.plane_channels, PAPER.decoder_hidden, PAPER.feature_channels)
    rule.fill(decoder, PSI_EQUALISED, "decoder.")
    planes = rule.tensor("planes", (1, 3, 32, 256, 256), 2.0)

    def density(points_BVRS3: Tensor) -> tuple[Tensor, Tensor]:
        colour, sigma = decoder(sample_planes(planes, points_BVRS3.flatten(1, 3), PAPER.box))
        return colour.unflatten(1, points_BVRS3.shape[1:4]), sigma.unflatten(1, points_BVRS3.shape[1:4])

    feature = sample_planes(planes, rule.tensor("query_points", (1, 2048, 3), 0.45), PAPER.box)
    colour, sigma = decoder(feature)
    found = {"points_feature": feature[0], "points_rgb": colour[0], "points_sigma": sigma[0, :, None]}
    for name, view in (("a", camera()), ("b", CAMERA_B)):
        origins, directions = camera_rays(view[None], 64)
        rays = render_rays(density, view[None], 64, PAPER.samples, PAPER.samples_fine, PAPER.box)
        arrays = {
            "camera": view,
            "ray_origin": origins[0, 0],
            "ray_dirs": directions[0, 0, ::16],
            "feature": rays.colour[0, 0].unflatten(0, (64, 64)),
            "feature_rgb": rays.colour[0, 0, :, :3],
            "depth": rays.depth[0, 0],
            "transmittance": 1 - rays.opacity[0, 0],
            "all_depths": rays.depths[0, 0, ::64],
            "weights": rays.weights[0, 0, ::64],
        }
        found |= {f"{name}_{key}": array for key, array in arrays.items()}
    return found


def superresolution(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    network = rule.fill(SuperResolution(PAPER), PSI_EQUALISED, "superresolution.")
    feature = rule.tensor("sr_feature", (1, 32, 128, 128), 0.6).clamp(-1, 1)
    style = rule.tensor("sr_w", (1, 1, 512))[:, 0]
    plain = network(feature, feature[:, :3], style)[0]
    small = feature[:, :, ::2, ::2]
    return {
        "out_none": plain,
        "out_none_exact": plain[:, ::8, ::8],
        "out_const": network(feature, feature[:, :3], style, noise=True)[0, :, ::8, ::8],
        "out_from64": network(small, small[:, :3], style)[0, :, ::8, ::8],
        "stats": statistics(plain),
    }


def pdfgc_motion_encoder(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    encoder = rule.fill(MotionEncoder(PAPER.motion))
    crop = rule.image("face224", 224)
    with recorded(fan_feature=encoder.model) as seen:
        headpose, eye, emotion, mouth = encoder(crop)
    found = {
        "headpose": headpose,
        "eye": eye,
        "emotion": emotion,
        "mouth": mouth,
        "motion548": encoder.embedding(crop),
        **seen,
    }
    return {name: value[0] for name, value in found.items()}


def arcface_iresnet18(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    return {"embedding": rule.fill(IdentityNet(PAPER.identity))(rule.image("face112", 112))[0]}


def discriminator(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    network = rule.fill(Discriminator(PAPER), EVERY_LAYER)
    view = torch.cat([camera(), camera(-0.5, -0.2)])

    def pair(name: str, size: int, channels: int = 3) -> Tensor:
        return torch.cat([rule.image(f"{name}{i}", size, channels) for i in range(2)])

    images = pair("d_image_sr", 512).requires_grad_()
    # The official network takes the silhouette in [-1, 1]; ours takes the opacity and brings it there.
    others = [pair("d_image", 128), (pair("d_seg", 128, 1) + 1) / 2, pair("d_uv", 512), view]
    with (
        torch.enable_grad(),
        recorded(b512=network.b512, b32=network.b32, b8=network.b8, cmap=network.mapping) as seen,
    ):
        logits = network(images, *others)
        (gradient,) = torch.autograd.grad(logits.sum(), images)
    return {
        "camera": view,
        "logits": logits.detach(),
        "cmap": seen["cmap"],
        "b512": seen["b512"][:, ::8, ::16, ::16],
        "b32": seen["b32"][:, ::8, ::2, ::2],
        "b8": seen["b8"],
        "grad_image_sr": gradient[:, :, ::16, ::16],
        "grad_image_sr_norm": gradient.flatten(1).norm(dim=1),
        "logits_single": network(*(part[:1].detach() for part in (images, *others))),
    }


@lru_cache(maxsize=1)
def _psi(rule: NumberRule) -> Psi:
    return rule.fill(Psi(PAPER), PSI_EQUALISED)


@lru_cache(maxsize=1)
def _psi_planes(rule: NumberRule, motion_scale: float) -> tuple[Tensor, Tensor, dict[str, Found]]:
    """Planes, background feature and what the fixtures hold of the way there."""
    psi, source = _psi(rule), rule.image("img_app", 512)
    canonical = psi.encoder_canonical
    layers = {
        "encoder_global": psi.encoder_global,
        "encoder_detail": psi.encoder_detail,
        "background_logits": psi.background,
    }
    with recorded(**layers, canonical_lr=canonical.shuffle, canonical_sr=canonical) as seen:
        planes = psi.planes(
            source,
            *(rule.tensor(name, (1, PAPER.motion.dims)) for name in ("motion_app", "motion")),
            motion_scale,
        )
        background = psi.background_feature(source)
    steps = {
        "encoder_global": 2,
        "encoder_detail": 8,
        "canonical_lr": 2,
        "canonical_sr": 8,
        "background_logits": 8,
        "planes": 8,
    }
    found: dict[str, Found] = {}
    for name, step in steps.items():
        value = (seen | {"planes": planes})[name][0]
        found |= {name: value[..., ::step, ::step].clone(), f"{name}_stats": statistics(value)}
    return planes, background, found


def forget_psi() -> None:
    """Frees Psi, nearly a gigabyte, and its planes."""
    _psi.cache_clear()
    _psi_planes.cache_clear()


def _psi_picture(rule: NumberRule, motion_scale: float, deform: Deform | None = None) -> dict[str, Found]:
    planes, background, _ = _psi_planes(rule, motion_scale)
    out = _psi(rule).render(planes, background, camera()[None], deform)
    feature, behind = out.feature[0], (1 - out.opacity[0]) * background[0]
    return {
        "camera": camera(),
        "feature": feature,
        "feature_wobg": feature - 2 * behind,
        "transmittance": 1 - out.opacity[0],
        "depth": out.depth[0],
        "image": out.raw[0],
        "image_sr": out.image[0],
        "image_sr_exact": out.image[0, :, ::8, ::8],
    }


def psi_v2(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    return _psi_planes(rule, 1.0)[2] | _psi_picture(rule, 1.0)


def psi_3d(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    of_psi_v2 = ("encoder", "background")  # the same there and here, stored there
    planes = {
        name: value for name, value in _psi_planes(rule, 0.0)[2].items() if not name.startswith(of_psi_v2)
    }
    return planes | _psi_picture(rule, 0.0)


def psi_v2_posed(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    neck = NeckField(*(fixture.given(name, shape) for name, shape in NECK_GRIDS.items()), PAPER.box)
    picture = _psi_picture(rule, 1.0, neck)
    del picture["feature"], picture["image_sr_exact"]
    return picture | {"points_out": neck(rule.tensor("deform_points", (1, 4096, 3), 0.35))[0]}


def flame(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    embedding, needed = landmark_embedding(fixture.folder)
    layer = Flame(fake_head(rule, *embedding))
    amplitudes = {"shape": (300, 0.5), "exp": (100, 0.5), "pose": (6, 0.15), "eye": (6, 0.1)}
    parameters = [rule.tensor(name, (1, count), amplitude) for name, (count, amplitude) in amplitudes.items()]
    vertices = layer.vertices(*parameters)
    landmarks = layer.landmarks(vertices)[0].numpy()
    u, v = project(landmarks, camera()[0].numpy()).T
    return {
        "camera": camera(),
        "vertices": vertices[0, ::20],
        "vertices_mean": vertices[0].mean(0),
        "joints": layer.joints(*parameters)[0],
        "canonical_joints_offset": layer.canonical()[::20],
        "landmarks3d": needed or landmarks,
        "landmarks2d_512": needed or 512 * np.stack([u, 1 - v], 1),  # the official ones have y up
    }


def genhead(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    network = rule.fill(GenHead(PAPER, Flame(standin())), EVERY_LAYER)
    z, view = rule.tensor("z", (1, 512)), camera(-0.2, 0.05)
    condition = torch.cat([view, rule.tensor("shape", (1, 300), 0.5)], 1)
    planes = network.planes(z, condition)
    mapping, background = network.backbone.mapping, network.background
    logits = background.synthesis(background.mapping(rule.tensor("z_bg", (1, 512))))
    found = {
        "camera": camera(),
        "camera_condition": view,
        "ws": mapping(z, condition)[0, 0],
        "num_ws": np.array(network.backbone.synthesis.num_ws),
        "ws_trunc07": mapping(z, condition, 0.7)[0, 0],
        "planes": planes[0, :, ::2, ::8, ::8],
        "planes_stats": statistics(planes[0]),
        "background_logits": logits[0, :, ::2, ::2],
    }
    for automatic in (False, True):
        rays = network.rays(planes, _parts(), camera()[None], automatic=automatic)
        arrays = {
            "feature": rays.colour[0, 0],
            "depth": rays.depth[0, 0],
            "transmittance": 1 - rays.opacity[0, 0],
        }
        found |= {f"part_{key}_fuse{automatic:d}": array for key, array in arrays.items()}
    return found


def _parts() -> HeadState:
    """Deformation and masks by formula, in the place of the head model's."""
    centres = (torch.arange(64) + 0.5) / 64
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    motions = {"eyes": (1.02, 0.0), "face": (1.0, 0.0), "mouth": (0.97, 0.01)}
    centre = torch.tensor([0.0, 0.05, 0.2])
    return HeadState(
        deform=lambda points, part: motions[part][0] * points + motions[part][1],
        eye_boxes_BE23=torch.stack([centre - 0.15, centre + 0.15])[None, None],
        eye_mask_BVnn=((y > 0.35) & (y < 0.45)).float()[None, None],
        mouth_mask_BVnn=0.75 * ((y - 0.62) ** 2 + (x - 0.5) ** 2 < 0.01).float()[None, None],
    )


def preprocess(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    landmarks, image = fixture.given("landmarks", (70, 2)), rule.image("img_app", 512)
    up = torch.stack([landmarks[..., 0], 511 - landmarks[..., 1]], -1)

    def three(points: Tensor) -> Tensor:
        return torch.stack(
            [points[:, part].mean(1) for part in (slice(36, 42), slice(42, 48), slice(60, 68))], 1
        )

    template = torch.tensor(EYES_AND_MOUTH)
    # The official warp counts pixels by their centres; fractions of the image count from its edge.
    fractions = (landmarks + 0.5) / 512
    return {
        "pdfgc_matrix_rev0": similarity(three(landmarks), template)[0],
        "pdfgc_matrix_rev1": similarity(three(up), template)[0],
        "arcface_matrix": similarity(up[:, list(FIVE_OF_70)], torch.tensor(IDENTITY_TEMPLATE))[0],
        "warp224": cut(image, alignment(image, three(fractions), EYES_AND_MOUTH), (0.0, 0.0), 224.0, 224)[0],
        "crop224": motion_crop(image, fractions, 224)[0],
    }


PSI_CASES: dict[str, ParityCase] = {"psi_v2": psi_v2, "psi_3d": psi_3d, "psi_v2_posed": psi_v2_posed}
CASES: dict[str, ParityCase] = PSI_CASES | {
    case.__name__: case
    for case in (
        rule_check,
        renderer,
        superresolution,
        pdfgc_motion_encoder,
        arcface_iresnet18,
        discriminator,
        flame,
        genhead,
        preprocess,
    )
}
