"""The parity cases of the instruments: networks, crops and distances of what papers measure with.

The fixtures are described in tests/published/instruments/README.md. Two of their arrays are wrong answers to
recognise: torchvision's networks under the same weights.
"""

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance
from torchvision.models import Inception3, resnet34, resnet50
from torchvision.transforms.functional import normalize

from model.instruments import arcface as recognition
from model.instruments import deep3d as coefficients
from model.instruments import emotion as classifier
from model.instruments import inception as fid
from model.instruments import syncnet as sync
from model.judges.identity import IdentityNet
from model.psi.encoders import ResNet, with_coordinates
from model.psi.imagenet import encoder_start
from pipeline.parity.fixture import PAPER, Fixture, Found, ParityCase, recorded, statistics
from pipeline.parity.instrument_inputs import pair, photo, picture, sound
from pipeline.parity.numbers import NumberRule

LAYERS = ("layer1", "layer2", "layer3", "layer4")
# Outputs of SyncNet's two networks that the fixture has, by their places.
AUDIO_PLACES, LIP_PLACES = (3, 7, 10, 13, 17), (3, 7, 10, 13, 17)
CROPS = "crop112"  # of the fixture, which the networks of face recognition are given
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def rule_check_instruments(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    """The inputs and weights of the instruments, before any network."""
    weights = {
        "conv1": ("backbone.conv1.weight", (64, 3, 7, 7)),
        "running_var": ("backbone.bn1.running_var", (64,)),
        "prelu": ("prelu.weight", (64,)),
    }
    found: dict[str, Found] = {
        "unit_test": rule.unit("test", (16,)),
        "image_face112_every16": rule.image("face112", 112)[0, :, ::16, ::16],
        "pair_face224_every32": pair(rule, "face224", 224)[:, :, ::32, ::32],
        "picture_photo_every64": photo(rule)[::64, ::64],
        "audio_every500": sound(rule, 8137)[::500],
    }
    for name, (key, shape) in weights.items():
        weight = np.asarray(rule.weight(key, shape, False))
        found[f"weight_{name}_first4"] = weight.ravel()[:4]
    return found


def deep3d(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    """Coefficients of two faces and of aligned crops, by the official alignment and by Portrait-4D's."""
    network = rule.fill(coefficients.Deep3D())
    backbone = network.backbone
    with recorded(feature=backbone, **_stages(backbone)) as seen:
        coeff = network(pair(rule, "face224", 224))
    first, second = coeff.numpy()
    difference = first - second
    expression = difference[coefficients.EXPRESSION]
    angle = difference[coefficients.ANGLES]
    translation = difference[coefficients.TRANSLATION]
    pose = np.concatenate([angle, translation])
    # What is stored is transposed, as the official code multiplies rows.
    angles = 0.5 * rule.unit("input:angles", (4, 3))
    turned = Rotation.from_euler("xyz", angles)
    rotation = turned.as_matrix().transpose(0, 2, 1)
    names = ("backbone.conv1.weight", "final_layers.1.weight", "backbone.layer3.2.bn2.running_var")
    state = network.state_dict()
    first_weights = [state[name].flatten()[:4] for name in names]
    points = fixture.given("landmarks5", (2, 5, 2))[0].numpy()
    all_points = fixture.given("landmarks68", (68, 2))[0].numpy()
    found: dict[str, Found] = {
        "coeff": coeff,
        **_statistics(seen, "feature"),
        "exp_mean_abs": np.abs(expression).mean(),
        "exp_mean_square": (expression**2).mean(),
        "exp_euclid": np.linalg.norm(expression),
        "angle_mean_abs": np.abs(angle).mean(),
        "angle_mean_square": (angle**2).mean(),
        "pose6_mean_abs": np.abs(pose).mean(),
        "rotation": rotation,
        "lm3d": coefficients.OFFICIAL.standard_53,
        "lm3d_portrait4d": coefficients.PORTRAIT4D.standard_53,
        "landmarks68_to_5": coefficients.five_of_68(all_points),
        "rule_first4": torch.stack(first_weights),
    }
    for prefix, alignment in (("", coefficients.OFFICIAL), ("p4d_", coefficients.PORTRAIT4D)):
        crops, found_there = _aligned(photo(rule), points, alignment)
        found |= {f"{prefix}{name}": value for name, value in found_there.items()}
        found[f"{prefix}crop_coeff"] = network(coefficients.network_input(crops))
    return found


def _aligned(
    scene: np.ndarray,
    points_252: np.ndarray,
    alignment: coefficients.Alignment,
) -> tuple[list[np.ndarray], dict[str, Found]]:
    """The crops of Deep3D, and what its fixture has of them."""
    height, width, _ = scene.shape
    crops, places, moved = [], [], []
    for points in points_252:
        place = coefficients.Placement.of(points, width, height, alignment)
        crops.append(place.crop(scene, alignment))
        places.append([place.width, place.height, place.scale, place.x, place.y])
        moved.append(place.points_in_crop(points))
    stacked = np.stack(crops)
    found: dict[str, Found] = {
        "trans_params": np.array(places),
        "crop_every4": stacked[:, ::4, ::4],
        "crop_mean_std": _colour_statistics(stacked),
        "crop_landmarks": np.stack(moved),
    }
    return crops, found


def inception(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    """Features by three front ends, torchvision's wrong answer, and Fréchet distances."""
    small = picture(rule, "photo", 512)[100:356, 100:356]
    large = picture(rule, "photob", 512)[:448] // 2 + 20
    # Of two sizes, so that one is enlarged and one is made smaller: they make no batch before that.
    pictures = []
    for array in (small, large):
        channels_first = torch.from_numpy(array).permute(2, 0, 1)
        pictures.append(channels_first[None])
    resizes = {
        "pytorch_fid": "half_pixel",
        "torch_fidelity": "tensorflow1",
        "torchmetrics": "antialias",
    }
    found: dict[str, Found] = {}
    network = rule.fill(fid.FidInception())
    for program, resize in resizes.items():
        front_end = fid.FRONT_ENDS[program]
        inputs = torch.cat([front_end(single) for single in pictures])
        found[f"input299_{resize}_every13"] = inputs[:, :, ::13, ::13]
        maps = network.maps(inputs)
        for channels, feature in maps.items():
            found[f"{program}_{channels}"] = feature.mean((2, 3))
        if program == "pytorch_fid":
            for channels in (64, 192, 768):
                found[f"pytorch_fid_{channels}_stats"] = statistics(maps[channels])
        else:
            # Without the bias, as both programs leave it out of what the inception score reads.
            pooled = maps[fid.FEATURES].mean((2, 3))
            found[f"{program}_logits_unbiased"] = F.linear(pooled, network.fc.weight)
    # The same weights in torchvision's own network, whose pools are others.
    plain = Inception3(fid.CLASSES, aux_logits=False, transform_input=False, init_weights=False).eval()
    plain.load_state_dict(network.state_dict())
    plain.fc = nn.Identity()
    single = fid.FRONT_ENDS["pytorch_fid"](pictures[0])
    found["unpatched_torchvision_2048_item0"] = plain(single)[0]
    return found | _frechet(rule)


def _frechet(rule: NumberRule) -> dict[str, Found]:
    """Distances of two sets of vectors; three programs find the same."""

    def vectors(name: str, count: int) -> Tensor:
        return rule.tensor(f"fid_{name}", (count, 64)).double()

    mix = vectors("mix", 64) / 8
    first = vectors("a", 200) @ mix
    second = 1.1 * vectors("b", 150) @ mix + 0.3 * vectors("shift", 1)
    # The distance takes vectors as they are, without a network in front.
    as_they_are = nn.Identity()
    as_they_are.num_features = 64
    found: dict[str, Found] = {}
    for name, a, b in (("full", first, second), ("low", first[:40], second[:30])):
        distance = FrechetInceptionDistance(feature=as_they_are)
        distance.set_dtype(torch.float64)
        distance.update(a, real=True)
        distance.update(b, real=False)
        found[f"frechet_{name}_rank"] = distance.compute().expand(3)
    return found


def emotion(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    """The feature that is compared, what is read from it, distances, crops, torchvision's wrong answer."""
    network = rule.fill(classifier.EmotionNet())
    faces = pair(rule, "face224", 224)
    with recorded(**_stages(network.backbone)) as seen:
        feature = network(faces)
    linear = network.linear(feature)
    log_softmax, valence, arousal = classifier.emotions(linear)
    first, second = feature.double()
    difference = first - second
    plain = resnet50().eval()
    plain.fc = nn.Identity()
    plain.load_state_dict(network.backbone.state_dict())
    points = fixture.given("landmarks68", (2, 68, 2))[0].numpy()
    scene = photo(rule)
    # Pictures are cut bilinearly in use, and by cubic curves where the network was trained.
    crops, bicubic, boxes = [], [], []
    for face in points:
        crops.append(classifier.face_crop(scene, face))
        bicubic.append(classifier.face_crop(scene, face, classifier.BICUBIC))
        boxes.append(classifier.face_box(face))
    bilinear = torch.from_numpy(np.stack(crops))
    return {
        "emo_feat_2": feature,
        "linear": linear,
        "expression_log_softmax": log_softmax,
        "valence": valence,
        "arousal": arousal,
        **_statistics(seen),
        "feature_mean_abs": difference.abs().mean(),
        "feature_mean_square": difference.square().mean(),
        "feature_euclid": difference.norm(),
        "feature_one_minus_cosine": 1 - F.cosine_similarity(first, second, 0),
        "torchvision_resnet50_feature": plain(faces),
        "crop_center_x_y_oldsize_size": np.array(boxes),
        "crop_every4": bilinear[:, :, ::4, ::4],
        "crop_stats": statistics(bilinear),
        "crop_bicubic_every8": np.stack(bicubic)[:, :, ::8, ::8],
        "crop_feature": network(bilinear),
    }


def arcface(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    """IResNet-50 and -100 on two faces and on aligned crops."""
    points = fixture.given("landmarks5", (2, 5, 2))[0].numpy()
    scene = photo(rule)
    own_crops = np.stack([recognition.face_crop(scene, face) for face in points])
    # The stored crops are what the networks are given: versions of OpenCV differ in their last bits.
    stored = fixture.arrays.get(CROPS)
    crops = stored.values if stored and stored.values.shape == own_crops.shape else own_crops
    second = 0.4 * rule.image("face112b", 112) - 0.2
    faces = torch.cat([rule.image("face112", 112), second])
    found: dict[str, Found] = {
        CROPS: own_crops,
        "crop112_mean_std": _colour_statistics(own_crops),
    }
    for size in (112, 224, 256):
        found[f"matrix_{size}"] = np.stack([recognition.alignment(face, size) for face in points])
    for name in ("iresnet50", "iresnet100"):
        network = rule.fill(IdentityNet(recognition.RESNETS[name]))
        layers = {layer: getattr(network, layer) for layer in LAYERS}
        with recorded(**layers) as seen:
            embedding = network(faces)
        of_crops = network(recognition.network_input(crops))
        arrays = {
            "embedding": embedding,
            "cosine": F.cosine_similarity(*embedding.double(), 0),
            "crop_embedding": of_crops,
            "crop_cosine": F.cosine_similarity(*of_crops.double(), 0),
            **_statistics(seen),
        }
        found |= {f"{name}_{key}": value for key, value in arrays.items()}
    return found


def syncnet(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    """Embeddings of sound and lips, MFCC, scores, a whole clip, and face crops of a track."""
    network = rule.fill(sync.SyncNet())
    quiet = rule.tensor("mfcc", (1, 1, 13, 20), 8.0)
    loud = 3 + rule.tensor("mfccb", (1, 1, 13, 20), 5.0)
    # Two windows of five frames, of which the second ends with a darker one.
    frames = _frames(rule, "lip", 6)
    frames[5] = frames[5] // 2 + 20
    shown = _film(frames).float()
    windows = torch.stack([shown[:5], shown[1:]])
    layers = {f"netcnnaud.{place}": network.netcnnaud[place] for place in AUDIO_PLACES}
    layers |= {f"netcnnlip.{place}": network.netcnnlip[place] for place in LIP_PLACES}
    with recorded(**layers, lipfeat=network.netcnnlip) as seen:
        audio = network.audio(torch.cat([quiet, loud]))
        lip = network.lips(windows.transpose(1, 2))
    found: dict[str, Found] = {
        "audio": audio,
        "lip": lip,
        "lipfeat": seen.pop("lipfeat").flatten(1),
        "mfcc_137": sync.mfcc(sound(rule, 8137)),
    }
    # One step of time is left in the maps of the lips.
    for name, value in seen.items():
        found[f"{name}_stats"] = statistics(value.squeeze(2) if value.ndim == 5 else value)
    return found | _sync_scores(rule) | _sync_clip(rule, network) | _track(rule)


def _sync_scores(rule: NumberRule) -> dict[str, Found]:
    """Scores of sound that runs three windows ahead."""
    video = rule.tensor("sync_video", (40, 1024))
    noise = rule.tensor("sync_noise", (40, 1024))
    heard = 0.8 * video.roll(-3, 0) + 0.6 * noise
    found: dict[str, Found] = {}
    for shifts in (10, 15):
        distances = sync.distances(video, heard, shifts)
        found[f"pdist_mean_vshift{shifts}"] = distances.mean(0)
        found[f"offset_min_conf_vshift{shifts}"] = np.array(sync.sync_score(distances))
    return found


def _sync_clip(rule: NumberRule, network: sync.SyncNet) -> dict[str, Found]:
    """From pictures and sound to the score."""
    frames = _frames(rule, "clip", 14)
    heard = sound(rule, 14 * sync.SAMPLES)
    lips, audio = sync.embeddings(network, _film(frames), heard)
    distances = sync.distances(lips, audio)
    return {
        "clip_video_features": lips[:, ::4],
        "clip_audio_features": audio[:, ::4],
        "clip_distances": distances,
        "clip_offset_min_conf": np.array(sync.sync_score(distances)),
    }


def _track(rule: NumberRule) -> dict[str, Found]:
    """Crops of a face whose box grows and jitters, in a photo that is shifted."""
    k = np.arange(16)[:, None]
    motion = k * np.array([10, 12, 10.5, 13])
    jitter = 6 * rule.unit("input:track", (16, 4)).astype(np.float64)
    boxes = np.array([150, 60, 300, 250]) + motion + jitter
    scene = photo(rule)[:, :, ::-1]
    frames = [np.roll(scene, 3 * shift, axis=1) for shift in range(16)]
    crops = np.stack(sync.track_crops(frames, boxes))
    return {
        "track_box": boxes,
        "track_smooth_x_y_s": sync.smooth_track(boxes),
        "track_crop_every5th_every4": crops[::5, ::4, ::4],
        "track_crop_mean_std": _colour_statistics(crops),
    }


def resnet_34(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    """Torchvision's network, and the same weights as the start of Psi's encoder."""
    network = rule.fill(resnet34())
    faces = normalize(pair(rule, "face224", 224), IMAGENET_MEAN, IMAGENET_DEVIATION)
    with recorded(feature=network.avgpool, **_stages(network)) as seen:
        logits = network(faces)
    seen["feature"] = seen["feature"].flatten(1)

    # The convolutions alone, though the norms behind them are gone: Psi's encoder has none.
    encoder = ResNet(PAPER.psi.encoder_width, PAPER.psi.encoder_blocks).requires_grad_(False)
    encoder.load_state_dict(encoder_start(network.state_dict()))
    inputs = with_coordinates(rule.image("img_app", 512))
    layers = {layer: getattr(encoder, layer) for layer in LAYERS}
    with recorded(conv1=encoder.conv1, **layers) as maps:
        encoder(inputs)
    maps["conv1"] = F.relu(maps["conv1"])
    found: dict[str, Found] = {
        "logits": logits,
        **_statistics(seen, "feature"),
        "conv1_mapped_every4": encoder.conv1.weight[::4],
        "with_coordinates_every64": inputs[0, :, ::64, ::64],
        "encoder_f5_every8": maps["layer4"][0, :, ::8, ::8],
    }
    for number, layer in enumerate(("conv1", *LAYERS), start=1):
        found[f"encoder_f{number}_stats"] = statistics(maps[layer][0])
    return found


def _stages(backbone: nn.Module) -> dict[str, nn.Module]:
    return {name: getattr(backbone, name) for name in ("maxpool", *LAYERS)}


def _statistics(seen: dict[str, Tensor], *whole: str) -> dict[str, Found]:
    """Statistics of recorded maps, by the fixtures' names; those in `whole` as they are."""
    found: dict[str, Found] = {}
    for name, value in seen.items():
        if name in whole:
            found[name] = value
        else:
            found[f"{name}_stats"] = statistics(value)
    return found


def _colour_statistics(pictures_BHW3: np.ndarray) -> np.ndarray:
    """Mean and population deviation of each colour over all pixels, (B, 3, 2)."""
    mean = pictures_BHW3.mean((1, 2), dtype=np.float64)
    deviation = pictures_BHW3.std((1, 2), dtype=np.float64)
    return np.stack([mean, deviation], -1)


def _frames(
    rule: NumberRule,
    name: str,
    count: int,
) -> list[np.ndarray]:
    """Pictures of 224 pixels, blue first as SyncNet takes them."""
    return [picture(rule, f"{name}{t}", 224)[:, :, ::-1] for t in range(count)]


def _film(frames: list[np.ndarray]) -> Tensor:
    """uint8 (T, 3, H, W)."""
    stacked = np.ascontiguousarray(np.stack(frames))
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


INSTRUMENT_CASES: dict[str, ParityCase] = {
    "rule_check_instruments": rule_check_instruments,
    "deep3d": deep3d,
    "inception": inception,
    "emotion": emotion,
    "syncnet": syncnet,
    "arcface": arcface,
    "resnet34": resnet_34,
}
