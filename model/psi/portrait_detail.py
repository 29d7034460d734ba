"""Portrait detail: a last look at the portrait, at every pixel of the final picture.

An addition to the published network (`psi.portrait_detail` of model/sizes.py; 0 leaves it out), for small
scales. Volume rendering has half of the final picture's pixels a side or fewer, and super-resolution has to
guess the rest. The portrait knows it: where the head's surface is, by the rendered depth, is known at every
pixel, and so is where the portrait's camera saw it. What is found there, the portrait's own colours and
features that the motion has changed, is blended into the picture by a few convolutions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.psi.projection import LEAK, Changed, facing
from model.sizes import Sizes
from model.volume.planes import Planes, camera_places, sample_portrait
from model.volume.renderer import Deform, Rendering, camera_rays

COLOURS = 3
LEAST = 1e-3  # of opacity
CLOSED = -2.0  # the start: an eighth of the portrait's colours
CLOSES = 16.0  # where a tenth more or less of the portrait stands, a thirteenth of its colours is left


class PortraitDetail(nn.Module):
    """Pictures, and what the portrait shows at their pixels, to sharper pictures."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.psi.portrait_detail
        # What is known of a pixel: its colour, what is found in the portrait, how it faces, its opacity.
        known = COLOURS + COLOURS + width + 2
        self.features = nn.Conv2d(sizes.psi.projected, width, 3, padding=1)
        self.first = nn.Conv2d(known, 2 * width, 3, padding=1)
        self.hidden = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.last = nn.Conv2d(2 * width, COLOURS + 1, 3, padding=1)
        for layer in (self.features, self.first, self.hidden):
            nn.init.kaiming_normal_(layer.weight, a=LEAK)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.last.weight)
        with torch.no_grad():
            self.last.bias.copy_(torch.tensor([0.0, 0.0, 0.0, CLOSED]))

    def map(self, changed: Changed) -> Tensor:
        """(B, 4 + width, S, S) what is looked up: colours, how much of them is left, and features."""
        left = torch.exp(-(CLOSES * changed.moved_B1SS).square())
        return torch.cat([changed.portrait_B3SS, left, self.features(changed.features_BWSS)], 1)

    def forward(
        self,
        rendering: Rendering,
        planes: Planes,
        cameras_BV25: Tensor,
        deform: Deform | None = None,
    ) -> Tensor:
        """(B*V, 3, S, S) in about [-1, 1]: `rendering.image` with the portrait's detail."""
        image = rendering.image
        size = image.shape[-2:]
        # The depth of a pixel half of which is background is that of its head; one that is background alone
        # has the depth of its ray.
        opacity = rendering.opacity.detach()
        weight = opacity + LEAST
        both = torch.cat([opacity, weight, weight * rendering.depth.detach()], 1)
        both = F.interpolate(both, size, mode="bilinear", align_corners=False)
        covered, weight, depth = both.split(1, 1)
        depth = depth / weight
        heads, views = cameras_BV25.shape[:2]
        with torch.no_grad():
            origins, directions = camera_rays(cameras_BV25, size[0])
            along = depth.flatten(1).unflatten(0, (heads, views))
            points = (origins[:, :, None] + along[..., None] * directions).flatten(1, 2)
            if deform is not None:
                points = deform(points)
            seen = planes.in_portrait(points)
            cosine = facing(seen, camera_places(planes.camera_B25)[:, None])
        found = sample_portrait(planes.detail_BDSS, planes.camera_B25, seen)
        found = torch.cat([found, cosine[..., None]], -1)

        def picture(values_BNC: Tensor) -> Tensor:
            values = values_BNC.unflatten(1, (views, -1)).flatten(0, 1)
            return values.mT.unflatten(2, size)

        found = picture(found) * covered
        colours, left, features = found.split([COLOURS, 1, found.shape[1] - COLOURS - 1], 1)
        x = torch.cat([image, colours, features, covered], 1)
        x = F.leaky_relu(self.first(x), LEAK)
        x = F.leaky_relu(self.hidden(x), LEAK)
        x = self.last(x)
        share = torch.sigmoid(x[:, COLOURS:]) * left * covered
        return image + share * (colours - image) + x[:, :COLOURS]
