"""Psi on the fast path, with the motion encoder beside it.

A portrait is encoded once; then every motion and camera costs a picture.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from model.fast.psi import FastPsi, Source
from model.head.flame import Flame
from model.psi.motion_encoder import MotionEncoder, motion_crop
from model.psi.network import Psi
from model.psi.projection import Seen
from model.sizes import Sizes
from model.weights import load_weights
from pipeline.avatar.front_end import Portrait
from pipeline.core import paths
from pipeline.core.device import choose_device
from pipeline.core.errors import UserError
from pipeline.core.pictures import to_uint8
from pipeline.geometry import head_model
from pipeline.geometry.label import Label, Motion
from pipeline.geometry.neck import Neck, Posed, TurningNeck, with_necks

PICTURES_AT_ONCE = 8

Known = TypeVar("Known", Source, Seen)  # of a portrait


@dataclass(frozen=True)
class Weights:
    """The files of trained or imported networks."""

    psi: Path = paths.PSI / "psi.safetensors"
    motion: Path = paths.MOTION / "motion.safetensors"


@dataclass(frozen=True)
class Avatar:
    """All that depends on a photo alone, and the SHA-256 of the weights of Psi that made it."""

    portrait: Portrait
    motion_1M: Tensor
    source: Source
    weights: str


@dataclass(frozen=True)
class Turns:
    """How heads turn on their shoulders, for a Psi that was trained with a neck field.

    `by_camera` says that the cameras are given in the frame of the head, and hold these turns as well.
    """

    labels_N437: np.ndarray
    by_camera: bool


class Animator:
    """The networks of one process."""

    def __init__(self, weights: Weights, device: str = "cpu", head: str = "standin") -> None:
        """`head` is the head model that turns necks, as flame.model of params.yaml.

        Raises UserError when weights are missing, naming their stage, or damaged, or do not fit.
        """
        state, self.facts = _read(weights.psi, "train")
        encoder, facts = _read(weights.motion, "pretrain@motion")
        self.motion_sha256 = facts["sha256"]
        self.device = choose_device(device)
        try:
            # Sizes are those of the weights and not of params.yaml: an imported Psi needs no other params.
            self.sizes = sizes_of(self.facts)
            self.driven_by = self.facts["motion"]
            # Older weights were trained without a neck field, and say nothing of it.
            self.neck = Neck()
            if self.facts.get("neck") == "field":
                self.neck = TurningNeck(Flame(head_model.load(head)).to(self.device))
            psi = Psi(self.sizes.driven_by(self.driven_by))
            self.psi = FastPsi(self._frozen(psi, state))
            if facts["sizes"] != asdict(self.sizes.motion):
                raise ValueError(
                    f"the motion encoder {weights.motion} has other sizes than this Psi was trained for"
                )
            self.motion_encoder = self._frozen(MotionEncoder(self.sizes.motion), encoder)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            words = str(error).split("\n")[0]
            raise UserError(
                f"the networks {weights.psi} and {weights.motion} do not fit together: {words}. "
                "Make them by one run (dvc repro), or name a pair by --psi and --motion."
            ) from error

    def _frozen(self, network: nn.Module, state: dict[str, Tensor]) -> Any:
        network.load_state_dict(state)
        return network.to(self.device).eval().requires_grad_(False)

    @torch.inference_mode()
    def motion(
        self,
        pictures_NSS3: np.ndarray,
        points_N702: np.ndarray,
        labels_N437: np.ndarray,
    ) -> Tensor:
        """What drives Psi, (N, M), of uint8 pictures with their landmarks and labels.

        It is the embedding of E_mot, or 109 numbers of the label where Psi was trained with those.
        """
        if self.driven_by == "flame":
            return Motion.of(torch.from_numpy(labels_N437)).pack().to(self.device)
        images = image_batch(pictures_NSS3).to(self.device)
        points = torch.from_numpy(points_N702).to(self.device)
        crops = motion_crop(images, points, self.sizes.motion.input)
        return self.motion_encoder.embedding(crops)

    def avatar(self, portrait: Portrait) -> Avatar:
        """What is kept of a photo."""
        pictures = portrait.picture_SS3[None]
        motion = self.motion(pictures, portrait.points_702[None], portrait.label_437[None])
        source = self.psi.source(image_batch(pictures).to(self.device), motion, 1.0, *self.taken_by(portrait))
        return Avatar(portrait, motion, source, self.facts["sha256"])

    def taken_by(self, portrait: Portrait) -> Posed:
        """The camera that took a photo, and how the neck was turned before it: a clip of one frame."""
        label = torch.from_numpy(with_necks(portrait.label_437[None])).to(self.device)
        return self.neck.source(label[:, Label.CAMERA], label)

    def pictures(
        self,
        avatar: Avatar,
        motion_NM: Tensor,
        cameras_N25: np.ndarray,
        turns: Turns | None = None,
    ) -> Iterator[np.ndarray]:
        """A picture (S, S, 3) uint8 for each motion and its camera. Without `turns` necks are at rest."""
        cameras = torch.from_numpy(cameras_N25).to(self.device)
        # A batch spares a small network most of its overhead, and holds eight tri-planes of a large one.
        for start in range(0, len(motion_NM), PICTURES_AT_ONCE):
            rows = slice(start, start + PICTURES_AT_ONCE)
            motion = motion_NM[rows]
            source = repeated(avatar.source, len(motion))
            planes = self.psi.planes(source, motion)
            posed = self._posed(avatar, cameras[rows, None], turns, rows)
            rendering = self.psi.render(planes, source, posed.camera, posed.field)
            yield from to_uint8(rendering.image)

    def _posed(
        self,
        avatar: Avatar,
        cameras_BV25: Tensor,
        turns: Turns | None,
        rows: slice,
    ) -> Posed:
        """The heads of some frames on the shoulders of an avatar."""
        if turns is None:
            return Posed(cameras_BV25, None)
        # The shape is that of the photo (facts 8).
        labels = turns.labels_N437[rows].copy()
        labels[:, Label.SHAPE] = avatar.portrait.label_437[Label.SHAPE]
        moved = torch.from_numpy(labels).to(self.device)
        posed = self.neck.driven(cameras_BV25, moved)
        return posed if turns.by_camera else Posed(cameras_BV25, posed.field)


def repeated(source: Known, count: int) -> Known:
    """The same portrait `count` times."""
    parts: dict[str, Tensor | Seen] = {}
    for field in fields(source):
        value = getattr(source, field.name)
        # Views of one memory, not copies; one neck field serves any number of heads.
        if isinstance(value, Tensor):
            parts[field.name] = value.expand(count, *value.shape[1:])
        elif isinstance(value, Seen):
            parts[field.name] = repeated(value, count)
    return replace(source, **parts)


def image_batch(pictures_NSS3: np.ndarray) -> Tensor:
    """uint8 pictures as (N, 3, S, S) in [-1, 1]."""
    return torch.from_numpy(pictures_NSS3).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def sizes_of(facts: dict[str, Any]) -> Sizes:
    """The sizes that the JSON of weights names. Raises ValueError when they are none."""
    try:
        return TypeAdapter(Sizes).validate_json(json.dumps(facts["sizes"]))
    except (KeyError, ValidationError) as error:
        raise ValueError("the file beside the weights says no sizes") from error


def _read(path: Path, stage: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and what their JSON says. Raises UserError that names the stage to run."""
    if not path.is_file():
        raise UserError(
            f"{path} is missing: nothing is trained yet. Run `dvc repro {stage}`, or name other weights."
        )
    try:
        return load_weights(path)
    except ValueError as error:
        raise UserError(f"{error}. Run `dvc repro {stage}`.") from error
