"""The instruments of papers, where their files were imported.

A number is named after its instrument and takes the place of that of our own small network. Papers name AED
and APD without a formula and mean different ones, so that each kind has a name of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.instruments import arcface, deep3d, emotion
from model.instruments.inception import FidInception
from pipeline.core.errors import UserError
from pipeline.core.pictures import to_uint8
from pipeline.evaluate import metrics
from pipeline.evaluate.sums import Columns
from pipeline.networks.instruments import MEASURING, Loaded, described, load_instrument
from pipeline.networks.recognition_file import recognition_path


@dataclass(frozen=True)
class Faces:
    """Pictures and where the faces in them are."""

    images: Tensor  # (N, 3, S, S) in [-1, 1]
    points: Tensor  # (N, 70, 2) image fractions

    def each(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each picture as bytes (S, S, 3), and its 70 landmarks in pixels that count by their centres."""
        side = self.images.shape[-1]
        pixels = self.points.cpu().double().numpy() * side - 0.5
        yield from zip(to_uint8(self.images), pixels, strict=True)


class PublishedInstruments:
    """Those of the published instruments that were imported."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """`folder` is where `psi4d import` put them. Raises UserError when one is damaged."""
        self.device = device
        self.loaded: dict[str, Loaded] = {}
        self.used: dict[str, str] = {}
        for name in MEASURING:
            try:
                loaded = load_instrument(folder, name, device)
            except ValueError as error:
                raise UserError(str(error)) from error
            if loaded is not None:
                self.loaded[name] = loaded
                self.used[name] = described(loaded.facts)
        # A file of insightface's packs is run by the package itself.
        self.recognition_file = recognition_path(folder)
        if "arcface" not in self.loaded and self.recognition_file.is_file():
            self.used["arcface"] = self.recognition_file.name

    def has(self, name: str) -> bool:
        """Whether an instrument was imported, in any form."""
        return name in self.used

    @property
    def distances_wanted(self) -> bool:
        """Whether `distances` finds anything."""
        return self.has("deep3d") or self.has("emotion")

    def network(self, name: str) -> nn.Module | None:
        loaded = self.loaded.get(name)
        return None if loaded is None else loaded.network

    @property
    def inception(self) -> "FidPictures | None":
        """What takes pictures in [-1, 1] to Inception's features, for FID."""
        network = self.network("inception")
        return None if network is None else FidPictures(network)

    def distances(self, result: Faces, wanted: Faces) -> Columns:
        """AED, APD and AED_f of each pair in all kinds, float64 (N,)."""
        scores: Columns = {}
        if self.network("deep3d") is not None:
            difference = self.coefficients(result) - self.coefficients(wanted)
            expression = difference[:, deep3d.EXPRESSION]
            angles = difference[:, deep3d.ANGLES]
            scores["aed_deep3d_mean_abs"] = np.abs(expression).mean(1)
            scores["aed_deep3d_mean_square"] = (expression**2).mean(1)
            scores["apd_deep3d_mean_abs"] = np.abs(angles).mean(1)
            scores["apd_deep3d_mean_square"] = 1000 * (angles**2).mean(1)
        if self.network("emotion") is not None:
            found, driven = self.emotion(result), self.emotion(wanted)
            difference = found - driven
            scores["aed_f_mean_abs"] = np.abs(difference).mean(1)
            scores["aed_f_mean_square"] = (difference**2).mean(1)
            scores["aed_f_euclid"] = np.linalg.norm(difference, axis=1)
            scores["aed_f_one_minus_cosine"] = 1 - metrics.cosine(found, driven)
        return scores

    def coefficients(self, faces: Faces) -> np.ndarray:
        """Deep3D's of aligned faces, float64 (N, 257)."""
        crops = []
        for picture, points in faces.each():
            height, width, _ = picture.shape
            place = deep3d.Placement.of(deep3d.five_of_68(points), width, height)
            crops.append(place.crop(picture))
        return self._run("deep3d", deep3d.network_input(crops))

    def emotion(self, faces: Faces) -> np.ndarray:
        """Features of the emotion classifier, float64 (N, 2048)."""
        crops = [emotion.face_crop(picture, points[:68]) for picture, points in faces.each()]
        return self._run("emotion", torch.from_numpy(np.stack(crops)))

    def identity(self, faces: Faces, five: list[int]) -> np.ndarray:
        """ArcFace's features, float64 (N, 512); `five` are the landmarks that align a face."""
        crops = [arcface.face_crop(picture, points[five]) for picture, points in faces.each()]
        return self._run("arcface", arcface.network_input(np.stack(crops)))

    @torch.no_grad()
    def _run(self, name: str, inputs: Tensor) -> np.ndarray:
        features = self.loaded[name].network(inputs.to(self.device))
        return features.double().cpu().numpy()


class FidPictures(nn.Module):
    """Inception on pictures in [-1, 1], which are rounded to bytes as in the files that FID reads."""

    num_features = FidInception.num_features  # the name that torchmetrics looks for

    def __init__(self, network: FidInception) -> None:
        super().__init__()
        # The distance makes everything double that it finds in here; in a tuple the network stays single.
        self.networks = (network,)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        (network,) = self.networks
        levels = (127.5 * (images_B3HW + 1)).round()
        return network(levels.clamp(0, 255))
