"""Inception of 2015 as FID takes it: not torchvision's, which loads the same file and is 14 % off.

Here the mean of the pooling branches leaves the padding out, the last block has a maximum there, and there
are 1008 classes. Weights: pt_inception-2015-12-05-6726825d.pth of pytorch-fid, the same as torch-fidelity's.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INPUT = 299
CLASSES = 1008
FEATURES = 2048
Shape = tuple[int, int, int]  # channels out, rows and columns of the kernel
Pool = Callable[[Tensor], Tensor]

MEAN = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
MAXIMUM = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
HALVING = partial(F.max_pool2d, kernel_size=3, stride=2)


class Unit(nn.Module):
    """Convolution, norm, ReLU."""

    def __init__(
        self,
        inputs: int,
        shape: Shape,
        stride: int = 1,
        padded: bool = True,
    ) -> None:
        super().__init__()
        outputs, *kernel = shape
        padding = [side // 2 if padded else 0 for side in kernel]
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Chains of units side by side and a pooling branch, concatenated in this order."""

    def __init__(
        self,
        inputs: int,
        chains: Mapping[str, Sequence[Shape]],
        pool: Pool,
        pooled: int = 0,
        forked: Sequence[str] = (),
    ) -> None:
        """`pooled` channels leave the pooling branch, all where it is 0; `forked` chains end in two units."""
        super().__init__()
        self.pool = pool
        self.chains: list[list[str]] = []
        self.forks: list[list[str]] = []
        stride = 2 if pool is HALVING else 1
        for chain, shapes in chains.items():
            alone = len(shapes) == 1 and chain not in forked
            names = [chain] if alone else [f"{chain}_{place + 1}" for place in range(len(shapes))]
            channels = inputs
            for name, shape in zip(names, shapes, strict=True):
                # The last unit of a chain halves the map where the pooling does.
                last = name == names[-1]
                halves = last and stride == 2
                self.add_module(name, Unit(channels, shape, 2 if halves else 1, not halves))
                channels, _, _ = shape
            ends = []
            # A fork looks along rows and along columns: a 3x3 convolution at two thirds of its price.
            if chain in forked:
                number = len(shapes) + 1
                ends = [f"{chain}_{number}a", f"{chain}_{number}b"]
                self.add_module(ends[0], Unit(channels, (384, 1, 3)))
                self.add_module(ends[1], Unit(channels, (384, 3, 1)))
            self.chains.append(names)
            self.forks.append(ends)
        self.branch_pool = Unit(inputs, (pooled, 1, 1)) if pooled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        # Concatenation has an order, and weights of the next block count on it.
        for names, ends in zip(self.chains, self.forks, strict=True):
            y = x
            for name in names:
                y = getattr(self, name)(y)
            parts += [getattr(self, end)(y) for end in ends] or [y]
        parts.append(self.branch_pool(self.pool(x)))
        return torch.cat(parts, 1)


def _block_a(inputs: int, pooled: int) -> Block:
    chains = {
        "branch1x1": [(64, 1, 1)],
        "branch5x5": [
            (48, 1, 1),
            (64, 5, 5),
        ],
        "branch3x3dbl": [
            (64, 1, 1),
            (96, 3, 3),
            (96, 3, 3),
        ],
    }
    return Block(inputs, chains, MEAN, pooled)


def _block_b() -> Block:
    chains = {
        "branch3x3": [(384, 3, 3)],
        "branch3x3dbl": [
            (64, 1, 1),
            (96, 3, 3),
            (96, 3, 3),
        ],
    }
    return Block(288, chains, HALVING)


def _block_c(width: int) -> Block:
    # A row and a column see as far as a square of seven pixels, at two sevenths of its price.
    across, down = (width, 1, 7), (width, 7, 1)
    first = (width, 1, 1)
    chains = {
        "branch1x1": [(192, 1, 1)],
        "branch7x7": [
            first,
            across,
            (192, 7, 1),
        ],
        "branch7x7dbl": [
            first,
            down,
            across,
            down,
            (192, 1, 7),
        ],
    }
    return Block(768, chains, MEAN, 192)


def _block_d() -> Block:
    chains = {
        "branch3x3": [
            (192, 1, 1),
            (320, 3, 3),
        ],
        "branch7x7x3": [
            (192, 1, 1),
            (192, 1, 7),
            (192, 7, 1),
            (192, 3, 3),
        ],
    }
    return Block(768, chains, HALVING)


def _block_e(inputs: int, pool: Pool) -> Block:
    chains = {
        "branch1x1": [(320, 1, 1)],
        "branch3x3": [(384, 1, 1)],
        "branch3x3dbl": [
            (448, 1, 1),
            (384, 3, 3),
        ],
    }
    return Block(inputs, chains, pool, 192, forked=("branch3x3", "branch3x3dbl"))


class FidInception(nn.Module):
    """Pictures of bytes (B, 3, H, W), any size, to features (B, 2048).

    `front_end` is a key of FRONT_ENDS: three programs resize to 299 pixels in three ways, and FID differs by
    that alone.
    """

    num_features = FEATURES  # the name that torchmetrics looks for

    def __init__(self, front_end: str = "pytorch_fid") -> None:
        super().__init__()
        self.front_end = FRONT_ENDS[front_end]
        self.Conv2d_1a_3x3 = Unit(3, (32, 3, 3), 2, padded=False)
        self.Conv2d_2a_3x3 = Unit(32, (32, 3, 3), padded=False)
        self.Conv2d_2b_3x3 = Unit(32, (64, 3, 3))
        self.Conv2d_3b_1x1 = Unit(64, (80, 1, 1))
        self.Conv2d_4a_3x3 = Unit(80, (192, 3, 3), padded=False)
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = _block_b()
        self.Mixed_6b = _block_c(128)
        self.Mixed_6c = _block_c(160)
        self.Mixed_6d = _block_c(160)
        self.Mixed_6e = _block_c(192)
        self.Mixed_7a = _block_d()
        self.Mixed_7b = _block_e(1280, MEAN)
        self.Mixed_7c = _block_e(2048, MAXIMUM)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def maps(self, x_B3HW: Tensor) -> dict[int, Tensor]:
        """The feature maps that programs offer by their channels, from what a front end made."""
        x = self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x_B3HW))
        first = HALVING(self.Conv2d_2b_3x3(x))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(first))
        second = HALVING(x)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(second)))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        third = self.Mixed_6e(self.Mixed_6d(x))
        last = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(third)))
        return {64: first, 192: second, 768: third, FEATURES: last}

    def forward(self, bytes_B3HW: Tensor) -> Tensor:
        maps = self.maps(self.front_end(bytes_B3HW))
        return maps[FEATURES].mean((2, 3))


def _pytorch_fid(bytes_B3HW: Tensor) -> Tensor:
    """Half-pixel bilinear without a filter, and a division by 127.5."""
    x = _resized(bytes_B3HW.float() / 255, antialias=False)
    return 2 * x - 1


def _torchmetrics(bytes_B3HW: Tensor) -> Tensor:
    """Half-pixel bilinear that averages where it makes pictures smaller, and a division by 128."""
    x = _resized(bytes_B3HW.float(), antialias=True)
    return (x - 128) / 128


def _torch_fidelity(bytes_B3HW: Tensor) -> Tensor:
    """Bilinear as in TensorFlow 1, whose pixels begin at whole places, and a division by 128."""
    x = bytes_B3HW.float()
    # Both axes are resized alike, one after the other.
    for axis in (2, 3):
        count = x.shape[axis]
        place = torch.arange(INPUT, device=x.device) * (count / INPUT)
        before = place.long()
        after = (before + 1).clamp_max(count - 1)
        share = place - before
        # The share runs along the axis that is resized.
        share = share[:, None] if axis == 2 else share
        low = x.index_select(axis, before)
        high = x.index_select(axis, after)
        x = low + (high - low) * share
    return (x - 128) / 128


def _resized(x_B3HW: Tensor, antialias: bool) -> Tensor:
    return F.interpolate(
        x_B3HW,
        size=(INPUT, INPUT),
        mode="bilinear",
        align_corners=False,
        antialias=antialias,
    )


FRONT_ENDS = {
    "pytorch_fid": _pytorch_fid,
    "torch_fidelity": _torch_fidelity,
    "torchmetrics": _torchmetrics,
}
