"""How good the judges are on people who they are not trained on."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.judges.identity import IdentityNet, identity_crop
from model.judges.regressor import Regressor
from model.judges.trunk import Trunk
from pipeline.core.device import to_device
from pipeline.geometry.label import FIVE_POINTS, Estimate
from pipeline.networks.judges import Judges
from pipeline.pretrain.faces import Faces

Numbers = dict[str, Tensor]
PARTS = {
    "expression": Estimate.EXPRESSION,
    "jaw": Estimate.JAW,
    "eyes": Estimate.EYE,
    "rotation": Estimate.ROTATION,
}


class Unseen:
    """Faces that no network of this stage is trained on, and what a network makes of them."""

    def __init__(
        self,
        faces: Faces,
        device: torch.device,
        limit: int = 192,
    ) -> None:
        """Of the faces `limit`, evenly spread."""
        # Where there are fewer, places repeat, and each face counts once.
        last = len(faces) - 1
        places = np.linspace(0, last, limit)
        chosen = np.unique(places.astype(int))
        self.faces = to_device(faces.batch(chosen), device)

    @torch.no_grad()
    def people(self, network: IdentityNet) -> Numbers:
        """Cosines of the features of the same person and of others, a number a pair."""
        five_points = self.faces.landmarks[:, list(FIVE_POINTS)]
        crops = identity_crop(self.faces.image, five_points)
        embedding = F.normalize(network(crops), dim=1)
        cosine = embedding @ embedding.T
        who = self.faces.people
        equal = who[:, None] == who[None]
        # A picture beside itself says nothing.
        itself = torch.eye(len(who), dtype=torch.bool, device=who.device)
        return {
            "cosine_same": cosine[equal & ~itself],
            "cosine_other": cosine[~equal],
        }

    @torch.no_grad()
    def distances(self, trunk: Trunk) -> Numbers:
        """LPIPS of two pictures of a person and of two people, a number a pair."""
        image, who = self.faces.image, self.faces.people
        # The faces of a person follow each other; half of all faces further there is another one.
        apart = len(image) // 2
        near = who == who.roll(1, 0)
        far = who != who.roll(apart, 0)
        return {
            "lpips_same": trunk.distance(image, image.roll(1, 0))[near],
            "lpips_other": trunk.distance(image, image.roll(apart, 0))[far],
        }

    @torch.no_grad()
    def parameters(self, network: Regressor) -> Numbers:
        """The error of estimated parameters over that of always answering the mean, one number each.

        1 is no knowledge.
        """
        fitted = self.faces.fitted
        wanted = self.faces.targets[fitted]
        wrong = (network(self.faces.image)[fitted] - wanted).abs()
        unknown = (wanted - network.mean).abs()
        errors = {}
        for name, part in PARTS.items():
            error = wrong[:, part].mean()
            most = unknown[:, part].mean()
            errors[f"{name}_relative_error"] = error / most.clamp_min(1e-8)
        return errors


def measure_unseen(judges: Judges, faces: Faces) -> dict[str, float]:
    """Means of all numbers of the three networks."""
    unseen = Unseen(faces, judges.regressor.mean.device)
    numbers = unseen.people(judges.identity_net)
    numbers |= unseen.distances(judges.trunk)
    numbers |= unseen.parameters(judges.regressor)
    means = {}
    for name, value in numbers.items():
        if value.numel():
            means[name] = round(float(value.mean()), 6)
    return means
