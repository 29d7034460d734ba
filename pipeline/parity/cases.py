"""What each parity fixture holds, made again by our networks at paper size.

The fixtures are described in section 4 of tests/published/parity/README.md. A case is a function of the
number rule and of the fixture; it returns an array for every name that the fixture should have.
"""

import numpy as np
import torch
from torch import Tensor

from model.adversary.discriminator import Discriminator
from model.genhead import GenHead, HeadState, Samples, blend_parts, fuse_by_mask
from model.head.flame import Flame
from model.judges.identity import FIVE_OF_70, IdentityNet
from model.judges.identity import TEMPLATE as IDENTITY_TEMPLATE
from model.layers.warp import alignment, cut, similarity
from model.psi.motion_encoder import EYES_AND_MOUTH, MotionEncoder, eyes_and_mouth, motion_crop
from model.psi.network import EQUALISED, Psi
from model.volume.colour_decoder import ColourDecoder
from model.volume.planes import sample_planes
from model.volume.renderer import camera_rays, render_rays
from model.volume.superresolution import SuperResolution
from pipeline.geometry.camera import project
from pipeline.geometry.standin import standin
from pipeline.parity.fixture import PAPER, Fixture, Found, ParityCase, recorded, statistics
from pipeline.parity.head import fake_head, landmark_embedding
from pipeline.parity.instrument_cases import INSTRUMENT_CASES
from pipeline.parity.numbers import AS_CONSTRUCTED, EVERY_LAYER, NumberRule, camera
from pipeline.parity.psi_cases import PSI_CASES

CAMERA_B = camera(-0.5, -0.2, 4.0, 0.0)  # of the renderer; the other one is the default


def rule_check(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    """The number rule itself: inputs, cameras, and entries of Psi's state dict that the fixture names."""
    with torch.device("meta"):
        entries = Psi(PAPER).state_dict()
    shapes = {}
    for key, value in entries.items():
        if not key.endswith(AS_CONSTRUCTED):
            shapes[key] = tuple(value.shape)
    stored = fixture.arrays.get("keys")
    keys = [str(key) for key in stored.values.flat] if stored else []
    known = shapes.keys() >= set(keys)
    if not keys or not known:
        named = "keys is missing or names something else than entries of Psi"
        raise ValueError(f"{named}, so that nothing can be compared")
    fixture.inputs.add("keys")
    values = []
    for key in keys:
        weight = rule.weight(key, shapes[key], key.startswith(EQUALISED))
        # Sums of a million numbers need double precision.
        double = np.asarray(weight, np.float64)
        values.append(double.ravel())
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
    """Look-up, decoder, rays of two cameras and their integration in planes of noise."""
    decoder = ColourDecoder(PAPER.plane_channels, PAPER.decoder_hidden, PAPER.feature_channels)
    rule.fill(decoder, EQUALISED, "decoder.")
    planes = rule.tensor("planes", (1, 3, 32, 256, 256), 2.0)

    def density(points_BVRS3: Tensor) -> tuple[Tensor, Tensor]:
        points_BN3 = points_BVRS3.flatten(1, 3)
        feature_BNC = sample_planes(planes, points_BN3, PAPER.box)
        colour, sigma = decoder(feature_BNC)
        shape = points_BVRS3.shape[1:4]
        return colour.unflatten(1, shape), sigma.unflatten(1, shape)

    points = rule.tensor("query_points", (1, 2048, 3), 0.45)
    feature = sample_planes(planes, points, PAPER.box)
    colour, sigma = decoder(feature)
    found = {
        "points_feature": feature[0],
        "points_rgb": colour[0],
        "points_sigma": sigma[0, :, None],
    }
    for name, view in (("a", camera()), ("b", CAMERA_B)):
        origins, directions = camera_rays(view[None], 64)
        # Without a generator, as the fixtures were made without jitter.
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
    """Super-resolution alone, without and with noise, and from half of the size."""
    network = rule.fill(SuperResolution(PAPER), EQUALISED, "superresolution.")
    feature = rule.tensor("sr_feature", (1, 32, 128, 128), 0.6)
    feature = feature.clamp(-1, 1)
    rgb = feature[:, :3]
    style = rule.tensor("sr_w", (1, 1, 512))[:, 0]
    (plain,) = network(feature, rgb, style)
    (noisy,) = network(feature, rgb, style, noise=True)
    small = feature[..., ::2, ::2]
    (from_small,) = network(small, small[:, :3], style)
    return {
        "out_none": plain,
        "out_none_exact": plain[:, ::8, ::8],
        "out_const": noisy[:, ::8, ::8],
        "out_from64": from_small[:, ::8, ::8],
        "stats": statistics(plain),
    }


def pdfgc_motion_encoder(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    """E_mot: the FAN's feature and the four heads."""
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
    """Face recognition."""
    network = rule.fill(IdentityNet(PAPER.identity))
    return {"embedding": network(rule.image("face112", 112))[0]}


def discriminator(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    """Logits of two images at once and of one alone, features on the way, the gradient of the images."""
    network = rule.fill(Discriminator(PAPER), EVERY_LAYER)
    # Two cameras, as the deviation within a batch is part of the logits.
    view = torch.cat([camera(), camera(-0.5, -0.2)])

    def pair(
        name: str,
        size: int,
        channels: int = 3,
    ) -> Tensor:
        first = rule.image(f"{name}0", size, channels)
        second = rule.image(f"{name}1", size, channels)
        return torch.cat([first, second])

    images = pair("d_image_sr", 512).requires_grad_()
    # The official network takes the silhouette in [-1, 1]; ours takes the opacity and brings it there.
    opacity = (pair("d_seg", 128, 1) + 1) / 2
    others = [pair("d_image", 128), opacity, pair("d_uv", 512), view]
    layers = {
        "b512": network.b512,
        "b32": network.b32,
        "b8": network.b8,
        "cmap": network.mapping,
    }
    with torch.enable_grad(), recorded(**layers) as seen:
        logits = network(images, *others)
        (gradient,) = torch.autograd.grad(logits.sum(), images)
    first = [part[:1].detach() for part in (images, *others)]
    single = network(*first)
    return {
        "camera": view,
        "logits": logits.detach(),
        "cmap": seen["cmap"],
        "b512": seen["b512"][:, ::8, ::16, ::16],
        "b32": seen["b32"][:, ::8, ::2, ::2],
        "b8": seen["b8"],
        "grad_image_sr": gradient[:, :, ::16, ::16],
        "grad_image_sr_norm": gradient.flatten(1).norm(dim=1),
        "logits_single": single,
    }


def flame(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    """The head model as a function, with a head model from a formula."""
    embedding, needed = landmark_embedding(fixture.folder)
    layer = Flame(fake_head(rule, *embedding))
    parameters = [
        rule.tensor("shape", (1, 300), 0.5),
        rule.tensor("exp", (1, 100), 0.5),
        rule.tensor("pose", (1, 6), 0.15),
        rule.tensor("eye", (1, 6), 0.1),
    ]
    vertices = layer.vertices(*parameters)
    landmarks = layer.landmarks(vertices)[0].numpy()
    # The official pictures of landmarks have y up.
    view = camera()[0].numpy()
    u, v = project(landmarks, view).T
    pixels = 512 * np.stack([u, 1 - v], 1)
    return {
        "camera": camera(),
        "vertices": vertices[0, ::20],
        "vertices_mean": vertices[0].mean(0),
        "joints": layer.joints(*parameters)[0],
        "canonical_joints_offset": layer.canonical()[::20],
        "landmarks3d": needed or landmarks,
        "landmarks2d_512": needed or pixels,
    }


def genhead(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    """The 4D GAN: styles, planes, background, and rendering of parts by both rules of fusing."""
    network = rule.fill(GenHead(PAPER, Flame(standin())), EVERY_LAYER)
    z = rule.tensor("z", (1, 512))
    view = camera(-0.2, 0.05)
    shape = rule.tensor("shape", (1, 300), 0.5)
    condition = torch.cat([view, shape], 1)
    planes = network.planes(z, condition)
    mapping = network.backbone.mapping
    background = network.background
    background_styles = background.mapping(rule.tensor("z_bg", (1, 512)))
    logits = background.synthesis(background_styles)
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
    for number, fuse in enumerate((fuse_by_mask, fuse_by_density)):
        rays = network.rays(planes, _parts(), camera()[None], fuse=fuse)
        arrays = {
            "feature": rays.colour[0, 0],
            "depth": rays.depth[0, 0],
            "transmittance": 1 - rays.opacity[0, 0],
        }
        found |= {f"part_{key}_fuse{number}": array for key, array in arrays.items()}
    return found


def fuse_by_density(
    face: Samples,
    eye: Samples,
    mouth: Samples,
    in_eye: Tensor,
    eye_mask: Tensor,
    mouth_mask: Tensor,
) -> Samples:
    """`fuse_by_mask`, but in the mouth the densities decide between it and the face.

    That is the official switch "auto fuse", which nothing of ours turns on.
    """
    colour, sigma = fuse_by_mask(face, eye, mouth, in_eye, eye_mask, mouth_mask)
    face_colour, face_sigma = face
    own_eye_mask = eye_mask * in_eye
    part_colour, part_sigma = blend_parts(eye, mouth, in_eye, own_eye_mask, mouth_mask)
    prefer = torch.sigmoid(part_sigma - face_sigma)
    at_mouth = mouth_mask > 0
    by_density = face_colour + prefer[..., None] * (part_colour - face_colour)
    colour = torch.where(at_mouth[..., None], by_density, colour)
    sigma = torch.where(at_mouth, face_sigma + part_sigma, sigma)
    return colour, sigma


def _parts() -> HeadState:
    """Deformation and masks by formula, in the place of the head model's."""
    centres = (torch.arange(64) + 0.5) / 64
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    motions = {"eyes": (1.02, 0.0), "face": (1.0, 0.0), "mouth": (0.97, 0.01)}

    def deform(points: Tensor, part: str) -> Tensor:
        scale, shift = motions[part]
        return scale * points + shift

    middle = torch.tensor([0.0, 0.05, 0.2])
    eye_box = torch.stack([middle - 0.15, middle + 0.15])
    eyes = (y > 0.35) & (y < 0.45)
    mouth = (y - 0.62) ** 2 + (x - 0.5) ** 2 < 0.01
    return HeadState(
        deform=deform,
        eye_boxes_BE23=eye_box[None, None],
        eye_mask_BVnn=eyes.float()[None, None],
        mouth_mask_BVnn=0.75 * mouth.float()[None, None],
    )


def preprocess(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    """The crops for E_mot and face recognition, from stored landmarks in pixels."""
    landmarks = fixture.given("landmarks", (70, 2))
    image = rule.image("img_app", 512)
    x, y = landmarks.unbind(-1)
    # The fixture has the similarities of landmarks with y down and with y up.
    up = torch.stack([x, 511 - y], -1)
    template = torch.tensor(EYES_AND_MOUTH)
    five_up = up[:, list(FIVE_OF_70)]
    # The official warp counts pixels by their centres; fractions of the image count from its edge.
    fractions = (landmarks + 0.5) / 512
    matrix = alignment(image, eyes_and_mouth(fractions), EYES_AND_MOUTH)
    return {
        "pdfgc_matrix_rev0": similarity(eyes_and_mouth(landmarks), template)[0],
        "pdfgc_matrix_rev1": similarity(eyes_and_mouth(up), template)[0],
        "arcface_matrix": similarity(five_up, torch.tensor(IDENTITY_TEMPLATE))[0],
        "warp224": cut(image, matrix, (0.0, 0.0), 224.0, 224)[0],
        "crop224": motion_crop(image, fractions, 224)[0],
    }


CASES: dict[str, ParityCase] = (
    PSI_CASES
    | INSTRUMENT_CASES
    | {
        "rule_check": rule_check,
        "renderer": renderer,
        "superresolution": superresolution,
        "pdfgc_motion_encoder": pdfgc_motion_encoder,
        "arcface_iresnet18": arcface_iresnet18,
        "discriminator": discriminator,
        "flame": flame,
        "genhead": genhead,
        "preprocess": preprocess,
    }
)
