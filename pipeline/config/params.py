"""params.yaml, typed: every key, its kind and its range. A wrong file stops a run before any work, in one message that names the key."""

import dataclasses
import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from model.sizes import Sizes
from pipeline.core.errors import UserError

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1)]  # learning rates


LIMITS = {
    "ge": "at least",
    "gt": "above",
    "le": "at most",
    "multiple_of": "in steps of",
    "min_length": "of a length of at least",
}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Machine(Section):
    """What this computer can give. Never a dependency of a stage: results do not depend on it."""

    workers: Count  # Ray actors; 0 works in the process itself
    device: Literal["auto", "cpu", "cuda"]
    ray_address: str  # empty: a Ray of our own on this machine
    object_store_mb: Annotated[int, Field(ge=80)]
    activation_checkpointing: bool


class FlameSection(Section):
    model: Annotated[str, Field(min_length=1)]  # "standin" or the path of generic_model.pkl


class Ingest(Section):
    source: Literal["generated", "folder"]
    portraits: Annotated[str, Field(min_length=1)]  # folders, read when source is "folder"
    clips: Annotated[str, Field(min_length=1)]
    identities: Positive  # of generated portraits
    photos: Positive  # portraits per identity
    train_clips: Positive
    validation_clips: Positive
    test_clips: Positive
    frames: Positive  # per generated clip; also the most that are used of a real one
    portrait_size: Annotated[int, Field(ge=64)]  # pixels of generated portraits
    clip_size: Annotated[int, Field(ge=64, multiple_of=2)]  # H.264 with 4:2:0 colour wants even sides
    fps: Positive
    min_face: Positive  # pixels
    min_frames: Positive
    detection_score: Probability
    smooth_crop: bool
    validation_share: Probability  # of the clips in a folder
    test_share: Probability
    shard_size: Positive


class FitFlame(Section):
    camera_steps: Count
    steps: Positive
    shape_weight: Weight
    expression_weight: Weight
    temporal_weight: Weight
    max_error: Annotated[float, Field(gt=0)]  # mean reprojection error over inter-ocular distance


class Pretraining(Section):
    steps: Positive
    batch: Positive
    learning_rate: Rate


class Pretrain(Section):
    source: Literal["generated", "official"]
    official: Annotated[
        str, Field(min_length=1)
    ]  # folder of the imported official weights, read when source is "official"
    perception: Pretraining
    motion: Pretraining
    genhead: Pretraining


class RenderGenhead(Section):
    heads: Positive
    views: Annotated[int, Field(ge=2)]
    points: Positive  # tri-plane samples kept per head
    look_at_share: Probability
    jaw_share: Probability
    z: Literal["portraits", "normal"]
    portrait_share: Probability
    truncation: Probability
    shard_size: Positive


class Psi3dWeights(Section):
    l1: Weight
    lpips: Weight
    identity: Weight
    adversarial: Weight
    depth: Weight
    opacity: Weight
    planes: Weight


class PsiWeights(Section):
    l1: Weight
    lpips: Weight
    identity: Weight
    adversarial: Weight
    opacity: Weight  # not in Eq. 5; the official code has 0.3


class Training(Section):
    images: Positive
    batch: Positive
    learning_rate: Rate
    equalised_learning_rate_scale: Annotated[
        float, Field(gt=0)
    ]  # of layers that scale weights of deviation 1 when they use them
    adam_eps: Annotated[float, Field(gt=0)]
    warmup: Count  # images over which the learning rate rises; the published runs have none
    decay_until: Count  # images by which it falls to nothing, 0 is never; the published runs have none
    ema_half_life: Positive  # images
    adversarial_from: Count  # images seen
    checkpoint_every: Positive  # images
    whole_every: (
        Positive  # steps; the others are sparse (pipeline/train/sparse_rays.py), 1 is none, as published
    )
    whole_from: Count  # images seen; until then all steps are thin
    preview_every: Positive  # images; the held-out people are looked at as often


class TrainPsi3d(Training):
    init: Literal["genhead", "scratch"]
    weights: Psi3dWeights
    identity_from: Count  # images seen
    depth_until: Count
    planes_until: Count


class RenderViews(Section):
    views: Positive
    shard_size: Positive
    # Frames whose reconstruction is worse are kept out of training.
    min_psnr: Weight  # dB inside the mask
    min_coverage: Probability
    min_identity: Annotated[float, Field(ge=-1, le=1)]  # cosine


class Train(Training):
    motion_learning_rate_scale: Annotated[float, Field(gt=0)]
    init: Literal["psi3d", "random"]
    motion: Literal["emot", "flame"]
    substitute_p: Probability
    substitute_q: Probability
    clips: Count  # 0 is all
    face_weight: (
        Weight  # what a pixel at brows, eyes and mouth counts more in L_1; the published runs have none
    )
    weights: PsiWeights


class Evaluate(Section):
    split: Literal["validation", "test"]  # parameters are chosen on validation people
    self_frames: Positive  # per clip
    cross_pairs: Count
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
        raise UserError(
            f"{path} must hold sections such as `ingest:` and `train:`; `psi4d scale demo` writes one."
        )
    return check_params(data, str(path))


def check_params(data: dict, where: str) -> Params:
    """`data` as Params. Raises UserError, with `where` in front, as load_params does."""
    try:
        params = Params.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise _refusal(where, [_explain(item, data) for item in error.errors(include_url=False)]) from error
    problems = list(_sizes_problems(params.networks, "networks")) + list(_cross_problems(params))
    if problems:
        raise _refusal(where, problems)
    return params


def _refusal(where: str, problems: list[str]) -> UserError:
    return UserError(
        "\n  ".join([f"{where}: ", *problems]) if len(problems) > 1 else f"{where}: {problems[0]}"
    )


def _explain(error: dict, data: dict) -> str:
    """One pydantic error in words that a user can act on."""
    path = list(error["loc"])
    key = ".".join(map(str, path))
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _keys(_kind(path[:-1]))
        nearest = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.0)
        section = ".".join(map(str, path[:-1])) or "the top level"
        return f"unknown key {key}; did you mean {'.'.join(map(str, [*path[:-1], *nearest]))}? Keys of {section}: {', '.join(known)}."
    if error["type"] in ("missing", "missing_argument"):
        return f"the key {key} is missing ({_allowed(path)})."
    if error["type"] == "value_error":  # of a dataclass of sizes, in its own words
        return str(error["ctx"]["error"])
    return f"{key} is {json.dumps(_value(data, path), default=str)}, but must be {_allowed(path)}."


def _value(data: Any, path: list) -> Any:
    for part in path:
        data = data[part]
    return data


def _keys(kind: Any) -> list[str]:
    return (
        list(kind.model_fields)
        if issubclass(kind, BaseModel)
        else [field.name for field in dataclasses.fields(kind)]
    )


def _field(kind: Any, name: str) -> tuple[Any, list]:
    """Type and constraints of a field of a section or of a dataclass of sizes."""
    if issubclass(kind, BaseModel):
        return kind.model_fields[name].annotation, kind.model_fields[name].metadata
    return next(field.type for field in dataclasses.fields(kind) if field.name == name), []


def _kind(path: list) -> Any:
    kind: Any = Params
    for part in path:
        kind = _field(kind, part)[0]
    return kind


def _allowed(path: list) -> str:
    """What a value may be, from its type and constraints."""
    if isinstance(path[-1], int):  # an element of a list
        return "a list of whole numbers"
    kind, metadata = _field(_kind(path[:-1]), path[-1])
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "a list of whole numbers"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    text = names[kind] if kind in names else f"a section with the keys {', '.join(_keys(kind))}"
    limits = [
        f"{words} {getattr(item, name)}".strip()
        for item in metadata
        for name, words in LIMITS.items()
        if getattr(item, name, None) is not None
    ]
    return f"{text}, {' and '.join(limits)}" if limits else text


def _sizes_problems(sizes: Any, where: str) -> Iterator[str]:
    """Every size is a positive number; one that is published as 0 may be 0."""
    for field in dataclasses.fields(sizes):
        value = getattr(sizes, field.name)
        if dataclasses.is_dataclass(value):
            yield from _sizes_problems(value, f"{where}.{field.name}")
        elif isinstance(value, str):  # one of a few names, which pydantic has looked at
            continue
        elif any(
            number < 0 or (number == 0 and field.default != 0)
            for number in (value if isinstance(value, tuple) else (value,))
        ):
            yield f"{where}.{field.name} is {json.dumps(value)}, but must be above 0."


def _cross_problems(params: Params) -> Iterator[str]:
    """What single ranges cannot say."""
    ingest = params.ingest
    if ingest.frames < ingest.min_frames:
        yield f"ingest.frames is {ingest.frames}, but must be at least ingest.min_frames {ingest.min_frames}, or every clip is too short."
    if params.pretrain.source == "official" and params.render_genhead.z == "portraits":
        yield 'render_genhead.z is "portraits", but must be normal when pretrain.source is official: nobody knows codes of its portraits.'
    heads = params.render_genhead
    if heads.z == "normal" and heads.portrait_share:
        yield f"render_genhead.portrait_share is {heads.portrait_share}, but must be 0 with render_genhead.z normal: fresh codes have no portraits."
    if ingest.source == "generated":
        clips = getattr(ingest, f"{params.evaluate.split}_clips")
        if params.evaluate.cross_pairs and clips < 2:
            key = f"ingest.{params.evaluate.split}_clips"
            yield f"evaluate.cross_pairs is {params.evaluate.cross_pairs}, but pairs need {key} of at least 2 (is {clips})."
        if params.train.clips > ingest.train_clips:
            yield f"train.clips is {params.train.clips}, but must be at most ingest.train_clips {ingest.train_clips} (0 is all)."
    for name in ("train_psi3d", "train"):
        section = getattr(params, name)
        if section.images < section.batch:
            yield f"{name}.images is {section.images}, but must be at least {name}.batch {section.batch}."
