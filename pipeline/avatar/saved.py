"""An avatar in one file: safetensors, with a JSON in its header that says what it is.

One file and not the pair of a sealed one (pipeline/store/sealed.py), as people hand avatars around.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.fast.psi import Source
from model.psi.projection import Seen
from pipeline.avatar.animator import Animator, Avatar
from pipeline.avatar.front_end import Portrait
from pipeline.avatar.tensor_file import read_header, read_tensors, write_tensors
from pipeline.core.errors import UserError

SUFFIX = ".avatar"
KIND, FORMAT = "psi4d avatar", 1
OWN_NOTICE = (
    "Made by weights that were trained with psi4d; what they were trained on may set terms for its use."
)
IMPORTED_NOTICE = "Made by published weights, imported from {file}; their licence holds for it."


def save(path: Path, avatar: Avatar, animator: Animator, photo: str) -> None:
    """Write `avatar`, made by `animator` of the file called `photo`. Equal avatars make equal bytes.

    Raises UserError when the place cannot be written.
    """
    facts = animator.facts
    # `psi4d import` notes what it read; weights of a training have nothing there.
    imported = facts.get("imported", {}).get("file")
    about = {
        "kind": KIND,
        "format": FORMAT,
        "photo": photo,
        "weights": avatar.weights,
        "motion": animator.driven_by,
        "sizes": facts["sizes"],
        "crop": avatar.portrait.crop_3.tolist(),
        "notice": IMPORTED_NOTICE.format(file=imported) if imported else OWN_NOTICE,
    }
    write_tensors(path, _tensors(avatar), about)


def load(path: Path, animator: Animator) -> Avatar:
    """Read an avatar for the networks of `animator`.

    Raises UserError when it is missing, damaged, none, or made by other weights: what one Psi keeps of a
    photo means nothing to another.
    """
    remedy = f"Make it again: psi4d avatar PHOTO -o {path}"
    about = read_facts(path)
    if about["weights"] != animator.facts["sha256"]:
        theirs, ours = about["weights"][:12], animator.facts["sha256"][:12]
        raise UserError(f"{path} was made by other weights ({theirs}, here are {ours}). {remedy}")
    try:
        tensors, _ = read_tensors(path)
        return _avatar(tensors, about, animator)
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}. {remedy}") from error


def read_facts(path: Path) -> dict[str, Any]:
    """What an avatar says of itself, without its tensors. Raises UserError when it is none."""
    remedy = f"Make it again: psi4d avatar PHOTO -o {path}"
    if not path.is_file():
        raise UserError(f"{path} does not exist. Make it: psi4d avatar PHOTO -o {path}")
    # The header alone is read, so that a large avatar of other weights is refused at once.
    try:
        about = read_header(path)
    except ValueError as error:
        raise UserError(f"{path} is no avatar of psi4d, or is damaged. {remedy}") from error
    if about.get("kind") != KIND or about.get("format") != FORMAT:
        raise UserError(f"{path} has format {about.get('format')}, this psi4d reads {FORMAT}. {remedy}")
    return about


def _tensors(avatar: Avatar) -> dict[str, Tensor]:
    portrait, source = avatar.portrait, avatar.source
    tensors = {
        "picture": torch.from_numpy(portrait.picture_SS3),
        "preview": torch.from_numpy(portrait.preview_PP3),
        "points": torch.from_numpy(portrait.points_702),
        "label": torch.from_numpy(portrait.label_437),
        "motion": avatar.motion_1M,
        "tokens": source.tokens_BDhw,
        "detail": source.detail_BWRR,
        "background": source.background_BFnn,
    }
    # Only where source features are projected; the camera and the neck are in the label.
    if source.seen is not None:
        tensors |= {"portrait": source.seen.portrait_B3SS, "seen": source.seen.features_BWSS}
        if source.seen.shapes_BWSS is not None:
            tensors["shapes"] = source.seen.shapes_BWSS
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _avatar(
    tensors: dict[str, Tensor],
    about: dict[str, Any],
    animator: Animator,
) -> Avatar:
    arrays = {name: tensors[name].numpy() for name in ("picture", "preview", "points", "label")}
    crop = np.array(about["crop"])
    portrait = Portrait(arrays["picture"], arrays["preview"], crop, arrays["points"], arrays["label"])
    of_source = ("tokens", "detail", "background", "portrait", "seen", "shapes")
    maps = {name: tensors[name] for name in of_source if name in tensors}
    # The fast path keeps feature maps in this order of memory, and adds up in the order of memory.
    for name, part in maps.items():
        maps[name] = part.to(animator.device).contiguous(memory_format=torch.channels_last)
    motion = tensors["motion"].to(animator.device)
    source = Source(maps["tokens"], maps["detail"], maps["background"], 1.0)
    if "seen" in maps:
        camera, posing = animator.taken_by(portrait)
        source = replace(
            source,
            seen=Seen(maps["portrait"], maps["seen"], maps.get("shapes")),
            camera_B25=camera,
            motion_BM=motion,
            posing=posing,
        )
    return Avatar(portrait, motion, source, about["weights"])
