"""params.yaml, typed: every key, its kind and its range.

A wrong file stops a run before any work, in one message that names the key (pipeline/config/messages.py).
"""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from model.sizes import Sizes
from pipeline.config.messages import cross_problems, explained, refusal, sizes_problems
from pipeline.core.errors import UserError

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Factor = Annotated[float, Field(gt=0)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
PathText = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Machine(Section):
    """What this computer can give. Never a dependency of a stage: results do not depend on it."""

    workers: Count  # Ray actors; 0 works in the process itself
    processes: Count  # that train together; 0 is one for each GPU, or core
    device: Literal["auto", "cpu", "cuda"]
    ray_address: str  # empty: a Ray of our own on this machine
    object_store_mb: Annotated[int, Field(ge=80)]
    activation_checkpointing: bool


class FlameSection(Section):
    model: PathText  # "standin" or the path of generic_model.pkl


class Ingest(Section):
    source: Literal["generated", "folder"]
    portraits: PathText  # folders, read when source is "folder"
    clips: PathText
    identities: Positive  # of generated portraits
    photos: Positive  # portraits per identity
    train_clips: Positive
    validation_clips: Positive
    test_clips: Positive
    frames: Positive  # per generated clip; also the most that are used of a real one
    portrait_size: Annotated[int, Field(ge=64)]  # pixels of generated portraits
    clip_size: Annotated[int, Field(ge=64, multiple_of=2)]  # H.264 with 4:2:0 colour wants even sides
    fps: Positive
    neck_share: Probability  # of the head's turn in a generated clip: what its shoulders do not follow
    min_face: Positive  # pixels
    max_outside: Probability  # the share of a head that may lie beyond the edge of its picture
    min_frames: Positive
    detection_score: Probability
    smooth_crop: bool
    validation_share: Probability  # of the clips in a folder
    test_share: Probability
    # "hash", or a folder with train.txt, validation.txt and test.txt that name clips.
    split: PathText
    # name, folder, auto, vfhq, celebv, part, or a regular expression (pipeline/ingest/splits.py).
    recordings: PathText
    # Whether each photo shows another person, or all of a subfolder one.
    people: Literal["file", "folder"]
    # Pictures a second of a folder of numbered pictures.
    frame_rate: Positive
    shard_size: Positive


class FitFlame(Section):
    camera_steps: Count
    steps: Positive
    shape_weight: Weight
    expression_weight: Weight
    temporal_weight: Weight
    max_error: Factor  # mean reprojection error over inter-ocular distance


class Pretraining(Section):
    steps: Positive
    batch: Positive
    microbatch: Positive
    learning_rate: LearningRate


class Pretrain(Section):
    source: Literal["generated", "official"]
    official: PathText  # folder of the imported weights, read when source is "official"
    perception: Pretraining
    motion: Pretraining
    genhead: Pretraining


# Codecs of pictures (pipeline/store/codecs.py): png and webp lose nothing, the others have a quality.
QUALITY = r"-(100|[1-9]?[0-9])"
ColourCodec = Annotated[str, Field(pattern=rf"^(png|webp|(webp|jpeg|avif){QUALITY})$")]
GreyCodec = Annotated[str, Field(pattern=rf"^(png|(jpeg|avif){QUALITY})$")]


class HeadPictures(Section):
    """How the pictures of a synthetic head are written."""

    view: ColourCodec
    uv: ColourCodec
    background: ColourCodec
    opacity: GreyCodec


class ViewPictures(Section):
    """How the pictures of a frame and of its pseudo views are written."""

    image: ColourCodec
    mask: GreyCodec
    view: ColourCodec
    alpha: GreyCodec
    uv: ColourCodec


class RenderGenhead(Section):
    heads: Positive
    views: Annotated[int, Field(ge=2)]
    points: Positive  # tri-plane samples kept per head
    look_at_share: Probability
    jaw_share: Probability
    z: Literal["portraits", "normal"]
    portrait_share: Probability
    truncation: Probability
    geometry_share: Probability  # of the heads that keep depth and features for the beginning of train_psi3d
    pictures: HeadPictures
    shard_size: Positive


class Psi3dWeights(Section):
    l1: Weight
    lpips: Weight
    identity: Weight
    adversarial: Weight
    depth: Weight
    opacity: Weight
    planes: Weight
    # Of the density between close points; 0.25 as published, which keeps surfaces soft for long.
    roughness: Weight
    # Of what a ray meets, in depth; 0 as published.
    thickness: Weight


class PsiWeights(Section):
    l1: Weight
    lpips: Weight
    identity: Weight
    adversarial: Weight
    opacity: Weight  # not in Eq. 5; the official code has 0.3
    # Of the error of the flow of projected features at landmarks, percent of the picture; not in Eq. 5.
    flow: Weight
    # Of what a ray meets, in depth; not in Eq. 5.
    thickness: Weight


class Training(Section):
    # official: the published network takes the place of one that is trained here.
    source: Literal["train", "official"]
    images: Positive
    batch: Positive
    # Samples that are computed at once; gradients of microbatches are added in one order, whatever the
    # machine.
    microbatch: Positive
    # Of the networks in training (pipeline/train/precision.py); weights and optimisers are float32.
    precision: Literal["float32", "tf32", "bfloat16"]
    learning_rate: LearningRate
    # Of layers that scale weights of deviation 1 when they use them.
    equalised_learning_rate_scale: Factor
    adam_eps: Factor
    # The learning rate rises over so many images, and falls to nothing by so many (0 is never). The published
    # runs have neither.
    warmup: Count
    decay_until: Count
    ema_half_life: Positive  # images
    adversarial_from: Count  # images seen
    checkpoint_every: Positive  # images
    # Images after which the weights so far are kept in the scratch folder, by their number; 0 is never.
    snapshot_every: Count
    # A whole picture each so many steps; the others are sparse (pipeline/train/sparse_rays.py). 1 is none of
    # those, as published. Until `whole_from` images all steps are sparse.
    whole_every: Positive
    whole_from: Count
    preview_every: Positive  # images; the held-out people are looked at as often


class TrainPsi3d(Training):
    # imagenet: the global encoder starts from torchvision's ResNet-34, as published; all else from scratch.
    # official: the published Psi_3d is trained further.
    init: Literal["genhead", "imagenet", "scratch", "official"]
    weights: Psi3dWeights
    # Rays a side at first, 0 for all of them; between two numbers of images they rise to networks.rays.
    rays_first: Count
    rays_rise_from: Count
    rays_rise_until: Count
    identity_from: Count  # images seen
    depth_until: Count
    planes_until: Count


class RenderViews(Section):
    views: Annotated[int, Field(ge=2)]  # of a frame: one tells the motion, another one is the target
    frames: Count  # of a training clip, drawn at random; 0 is all. Other splits have all of theirs
    pictures: ViewPictures
    # Of the opacity of pseudo views, which is rendered at the size of rays.
    alpha_size: Literal["image", "rays"]
    shard_size: Positive
    # Frames whose reconstruction is worse are kept out of training.
    min_psnr: Weight  # dB inside the mask
    min_coverage: Probability
    min_identity: Annotated[float, Field(ge=-1, le=1)]  # cosine


class Train(Training):
    motion_learning_rate_scale: Factor
    init: Literal["psi3d", "random", "official"]  # official: the published Psi is trained further
    motion: Literal["emot", "flame"]
    # field: cameras keep the mean rotation of a clip, the rest turns the neck, as published. none: cameras
    # hold all of the head's turn, and shoulders turn with it.
    neck: Literal["none", "field"]
    substitute_p: Probability
    substitute_q: Probability
    # Whether heads of pseudo targets are up to 3 % smaller while their eyes are closed, as published.
    blink_compensation: bool
    clips: Count  # 0 is all
    # How much more a pixel at brows, eyes and mouth counts in L_1; 0 in the published runs.
    face_weight: Weight
    weights: PsiWeights


class Evaluate(Section):
    split: Literal["validation", "test"]  # parameters are chosen on validation people
    clips: Count  # of the split, the first ones by name; 0 is all
    self_frames: Positive  # per clip
    cross_pairs: Count
    # drawn: drivers are drawn. all: every two people meet, and all frames of drivers come, in a stated order.
    cross: Literal["drawn", "all"]
    # What FID compares results with: all real frames that are looked at, or the driving frames of the pairs.
    fid: Literal["frames", "pairs"]
    frontal_drivers: Count
    novel_views: Count
    videos: Count


class Params(Section):
    scale: str
    seed: Count
    threads: Positive
    machine: Machine
    flame: FlameSection
    networks: Sizes
    ingest: Ingest
    fit_flame: FitFlame
    pretrain: Pretrain
    render_genhead: RenderGenhead
    train_psi3d: TrainPsi3d
    render_views: RenderViews
    train: Train
    evaluate: Evaluate


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check `path`. Raises UserError that names every wrong key, its value and what is allowed."""
    try:
        data = YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing. `psi4d scale demo` writes one.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        sections = "sections such as `ingest:` and `train:`"
        raise UserError(f"{path} must hold {sections}; `psi4d scale demo` writes one.")
    return check_params(data, str(path))


def check_params(data: dict, where: str) -> Params:
    """`data` as Params. Raises UserError, with `where` in front, as load_params does."""
    try:
        params = Params.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise refusal(where, explained(error, data, Params)) from error
    problems = [*sizes_problems(params.networks), *cross_problems(params)]
    if problems:
        raise refusal(where, problems)
    return params
