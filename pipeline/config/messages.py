"""Mistakes in params.yaml, in words for people: which key, what it is and what it may be."""

import dataclasses
import difflib
import json
import operator
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pipeline.core.errors import UserError

if TYPE_CHECKING:
    from pipeline.config.params import Params

LIMITS = {
    "ge": "at least",
    "gt": "above",
    "le": "at most",
    "multiple_of": "in steps of",
    "min_length": "of a length of at least",
}
# The one kind of text with a pattern.
CODECS = "png, webp-90, jpeg-90 or avif-90 (a quality from 0 to 100) or webp; grey pictures are no webp"
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def refusal(where: str, problems: list[str]) -> UserError:
    """All `problems` in one error: one in the line of `where`, more in a line each."""
    if len(problems) == 1:
        return UserError(f"{where}: {problems[0]}")
    return UserError("\n  ".join([f"{where}: ", *problems]))


def explained(error: ValidationError, data: dict, root: type[BaseModel]) -> list[str]:
    """A sentence for everything that pydantic found wrong in `data`, which should have been a `root`."""
    return [_explain(item, data, root) for item in error.errors(include_url=False)]  # pyrefly: ignore


def sizes_problems(sizes: Any, where: str = "networks") -> Iterator[str]:
    """Every size is a positive number; one that is published as 0 may be 0."""
    for field in dataclasses.fields(sizes):
        value = getattr(sizes, field.name)
        if dataclasses.is_dataclass(value):
            yield from sizes_problems(value, f"{where}.{field.name}")
        # A text is one of a few names, which pydantic has looked at.
        elif not isinstance(value, str):
            numbers = value if isinstance(value, tuple) else (value,)
            allowed = operator.ge if field.default == 0 else operator.gt
            if not all(allowed(number, 0) for number in numbers):
                yield f"{where}.{field.name} is {json.dumps(value)}, but must be above 0."


def cross_problems(params: "Params") -> Iterator[str]:
    """What single ranges cannot say."""
    yield from _generation_problems(params)
    ingest = params.ingest
    if ingest.frames < ingest.min_frames:
        limit = f"at least ingest.min_frames {ingest.min_frames}, or every clip is too short"
        yield f"ingest.frames is {ingest.frames}, but must be {limit}."
    if params.pretrain.official.startswith("~"):
        whole = os.path.expanduser(params.pretrain.official)
        yield f'pretrain.official is "{params.pretrain.official}", but DVC needs the whole path: {whole}.'
    heads = params.render_genhead
    if params.pretrain.source == "official" and heads.z == "portraits":
        limit = "normal when pretrain.source is official, as the codes of its portraits are unknown"
        yield f'render_genhead.z is "portraits", but must be {limit}.'
    if heads.z == "normal" and heads.portrait_share:
        limit = "0 with render_genhead.z normal: fresh codes have no portraits"
        yield f"render_genhead.portrait_share is {heads.portrait_share}, but must be {limit}."
    if params.train_psi3d.init == "imagenet" and params.pretrain.source != "official":
        limit = "genhead or scratch unless pretrain.source is official, which brings the file"
        yield f'train_psi3d.init is "imagenet", but must be {limit}.'
    none = heads.heads * heads.geometry_share < 1
    if none and max(params.train_psi3d.depth_until, params.train_psi3d.planes_until):
        limit = f"at least 1 of {heads.heads:,} heads while train_psi3d.depth_until or planes_until is not 0"
        yield f"render_genhead.geometry_share is {heads.geometry_share:g}, but must be {limit}."
    yield from _synthesizer_problems(params)
    yield from _ray_problems(params)
    for name in ("train_psi3d", "train"):
        section = getattr(params, name)
        if section.images < section.batch:
            limit = f"at least {name}.batch {section.batch}"
            yield f"{name}.images is {section.images}, but must be {limit}."
    yield from _microbatch_problems(params)


def _synthesizer_problems(params: "Params") -> Iterator[str]:
    """Whether published synthesizers have the published networks about them."""
    for name in ("train_psi3d", "train"):
        section = getattr(params, name)
        for key in ("source", "init"):
            if getattr(section, key) == "official" and params.pretrain.source != "official":
                limit = (
                    "another one unless pretrain.source is official, as it was trained with those networks"
                )
                yield f'{name}.{key} is "official", but must be {limit}.'


def _ray_problems(params: "Params") -> Iterator[str]:
    """Whether the rays of Psi_3d can rise from the first to all of them."""
    section, all_rays = params.train_psi3d, params.networks.rays
    first, begin, end = section.rays_first, section.rays_rise_from, section.rays_rise_until
    if not first:
        return
    if first > all_rays:
        yield f"train_psi3d.rays_first is {first}, but must be at most networks.rays {all_rays}."
    if begin >= end:
        limit = f"less than train_psi3d.rays_rise_until {end}"
        yield f"train_psi3d.rays_rise_from is {begin}, but must be {limit}."
    if section.whole_every > 1:
        limit = "1 while train_psi3d.rays_first is not 0: sparse steps need all rays"
        yield f"train_psi3d.whole_every is {section.whole_every}, but must be {limit}."


def _microbatch_problems(params: "Params") -> Iterator[str]:
    """Whether every batch is a power of two of microbatches."""
    sections: dict[str, Any] = {"train_psi3d": params.train_psi3d, "train": params.train}
    for name in ("perception", "motion", "genhead"):
        sections[f"pretrain.{name}"] = getattr(params.pretrain, name)
    for name, section in sections.items():
        count, rest = divmod(section.batch, section.microbatch)
        # A number with one bit has none in common with the number before it.
        if rest or count < 1 or count & (count - 1):
            limit = f"{name}.batch {section.batch} over 1, 2, 4, 8 or another power of two"
            yield f"{name}.microbatch is {section.microbatch}, but must be {limit}."


def _generation_problems(params: "Params") -> Iterator[str]:
    """Whether as many clips are generated as are needed."""
    ingest, evaluate = params.ingest, params.evaluate
    if ingest.source != "generated":
        return
    key = f"{evaluate.split}_clips"
    clips = getattr(ingest, key)
    if evaluate.cross_pairs and clips < 2:
        limit = f"pairs need ingest.{key} of at least 2 (is {clips})"
        yield f"evaluate.cross_pairs is {evaluate.cross_pairs}, but {limit}."
    if params.train.clips > ingest.train_clips:
        limit = f"at most ingest.train_clips {ingest.train_clips} (0 is all)"
        yield f"train.clips is {params.train.clips}, but must be {limit}."


def _explain(error: dict, data: dict, root: type[BaseModel]) -> str:
    """One of pydantic's errors in words that a user can act on."""
    path = list(error["loc"])
    key = ".".join(map(str, path))
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return _unknown_key(path, root)
    if error["type"] in ("missing", "missing_argument"):
        return f"the key {key} is missing ({_allowed(path, root)})."
    # A dataclass of sizes says it in words of its own.
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    value: Any = data
    for part in path:
        value = value[part]
    return f"{key} is {json.dumps(value, default=str)}, but must be {_allowed(path, root)}."


def _unknown_key(path: list, root: type[BaseModel]) -> str:
    """That there is no such key, which one is nearest to it, and which there are."""
    sections = list(map(str, path[:-1]))
    known = _keys(_kind(path[:-1], root))
    nearest = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.0)
    key, meant = ".".join(map(str, path)), ".".join([*sections, *nearest])
    section = ".".join(sections) or "the top level"
    return f"unknown key {key}; did you mean {meant}? Keys of {section}: {', '.join(known)}."


def _allowed(path: list, root: type[BaseModel]) -> str:
    """What a value may be, from its type and constraints."""
    # A number in the path is a place in a list.
    if isinstance(path[-1], int):
        return "a list of whole numbers"
    kind, constraints = _field(_kind(path[:-1], root), path[-1])
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "a list of whole numbers"
    if any(getattr(constraint, "pattern", None) for constraint in constraints):
        return CODECS
    text = KINDS.get(kind) or f"a section with the keys {', '.join(_keys(kind))}"
    limits = []
    for constraint in constraints:
        for name, words in LIMITS.items():
            limit = getattr(constraint, name, None)
            if limit is not None:
                limits.append(f"{words} {limit}")
    return f"{text}, {' and '.join(limits)}" if limits else text


def _kind(path: list, root: type[BaseModel]) -> Any:
    """The type of the section at `path`."""
    kind: Any = root
    for part in path:
        kind, _ = _field(kind, part)
    return kind


def _keys(kind: Any) -> list[str]:
    if issubclass(kind, BaseModel):
        return list(kind.model_fields)
    return [field.name for field in dataclasses.fields(kind)]


def _field(kind: Any, name: str) -> tuple[Any, list]:
    """Type and constraints of a field of a section or of a dataclass of sizes."""
    if issubclass(kind, BaseModel):
        return kind.model_fields[name].annotation, kind.model_fields[name].metadata
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    return types[name], []
