"""The frozen networks that judge images, loaded.

They are a perceptual distance, a face recognition and an estimator of expression and head pose. The paper
takes them ready-made (LPIPS, ArcFace, Deep3D); at generated scale `pretrain perception` trains small ones
of the same kind. All are in eval mode and without trainable weights, but differentiable in their input.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.judges.identity import IdentityNet, identity_crop
from model.judges.regressor import Regressor
from model.judges.trunk import PUBLISHED_TRUNK, PublishedTrunk, Trunk
from model.sizes import IdentitySizes
from model.weights import load_weights
from pipeline.core.errors import UserError


class Judges(nn.Module):
    """The three frozen networks behind one door."""

    def __init__(
        self,
        identity: IdentityNet,
        trunk: Trunk,
        regressor: Regressor,
    ) -> None:
        super().__init__()
        self.identity_net = identity
        self.trunk = trunk
        self.regressor = regressor
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> "Judges":
        """Read what `pretrain perception` wrote. Raises UserError when a file is missing or does not fit."""
        folder = Path(folder)
        try:
            weights, facts = load_weights(folder / "identity.safetensors")
            identity = IdentityNet(IdentitySizes(**facts["sizes"]))
            identity.load_state_dict(weights)
            weights, facts = load_weights(folder / "trunk.safetensors")
            # The published trunk and ours are of different networks; the JSON says which one it is.
            trunk = PublishedTrunk() if facts.get("network") == PUBLISHED_TRUNK else Trunk()
            trunk.load_state_dict(weights)
            weights, _ = load_weights(folder / "regressor.safetensors")
            regressor = Regressor()
            regressor.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            found = f"the perception networks in {folder} cannot be read ({error})"
            raise UserError(f"{found}. Run `dvc repro pretrain@perception`.") from error
        return cls(identity, trunk, regressor).to(device)

    def train(self, mode: bool = True) -> "Judges":
        """Stays in eval mode: BatchNorm must not move when the network around it trains."""
        return super().train(False)

    def lpips(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        """Perceptual distance of images in [-1, 1], (B,): 0 for equal images, about 0.5 for two people.

        Differentiable in both.
        """
        return self.trunk.distance(a_BCHW, b_BCHW)

    def identity(self, image_BCHW: Tensor, five_points_B52: Tensor) -> Tensor:
        """Unit face recognition features (B, E) of a face (facts 4.2). Differentiable.

        `five_points_B52` are its pupils, tip of the nose and corners of the mouth, as fractions of the image.
        """
        # The network was trained on faces that all lie in the same place.
        crop_B3HW = identity_crop(image_BCHW, five_points_B52)
        return F.normalize(self.identity_net(crop_B3HW), dim=1)

    def expression_pose(self, image_BCHW: Tensor) -> Tensor:
        """Estimated expression, jaw, eyes and head rotation (B, 109), as `Regressor`. Differentiable."""
        return self.regressor(image_BCHW)
