"""The floor of `psi4d bench`: the operations of each part of Psi over the measured rate of the unit that does them.

The operations are those of the published order (`Psi.forward`, counted on tensors without memory), less what a cached source saves.
The units are measured with the library's best call for each: 3x3 convolutions, matrix products, attention, look-ups in planes.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.layers.stylegan import SynthesisLayer, ToRGB
from model.layers.transformer import Attention
from model.psi.network import Psi
from model.sizes import Sizes

aten = torch.ops.aten
CLOCKS = ("wall", "work")
PARTS = ("source", "planes", "rays", "superresolution")  # once a portrait, a motion, a view, a view
SOURCE = (
    "encoder_global",
    "encoder_detail",
    "background",
    "encoder_canonical.patch_embed",
    "encoder_canonical.trans_blocks_neutral",
    "encoder_canonical.maps_neutral",
    "encoder_canonical.proj_y_neutral",
)


@dataclass(frozen=True)
class Seconds:
    wall: float
    work: float

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall + other.wall, self.work + other.work)

    def times(self, count: int) -> "Seconds":
        return Seconds(count * self.wall, count * self.work)


@dataclass(frozen=True)
class Rates:
    """What this machine reaches in one number type: 10^9 operations, look-ups of a point in a plane, or softplus a second of one clock."""

    convolution: float
    product: float
    attention: float
    look_up: float  # float32 in any case, as is softplus
    softplus: float

    @property
    def ceiling(self) -> float:
        """The highest rate of arithmetic."""
        return max(self.convolution, self.product, self.attention)


class Clock:
    """Seconds since it was made: on the wall, and of this process's work shared out to its threads.

    The second is the time that other programs on the same cores leave out of account; where nothing else runs, and all threads always have
    work, the two are the same.
    """

    def __init__(self) -> None:
        self.wall, self.work = time.perf_counter(), time.process_time()

    def read(self) -> Seconds:
        return Seconds(
            time.perf_counter() - self.wall, (time.process_time() - self.work) / torch.get_num_threads()
        )


def seconds_of(run: Callable[[], object], budget: float = 1.0) -> Seconds:
    """Median of several runs after one that does not count."""
    run()
    times: list[Seconds] = []
    while len(times) < 3 or (sum(one.wall for one in times) < budget and len(times) < 20):
        clock = Clock()
        run()
        times.append(clock.read())
    return Seconds(
        *(sorted(getattr(one, name) for one in times)[len(times) // 2] for name in ("wall", "work"))
    )


@torch.inference_mode()
def measure_rates(dtype: torch.dtype) -> dict[str, Rates]:
    """By clock (the fields of Seconds); a few seconds of each unit, at sizes of the paper's tri-plane decoder."""

    def image(channels: int, side: int) -> Tensor:
        return torch.randn(1, channels, side, side).to(dtype, memory_format=torch.channels_last)

    def best(amount: float, *ways: Callable[[], object]) -> list[float]:
        return [
            amount / 1e9 / min(getattr(one, clock) for one in times)
            for times in [[seconds_of(way) for way in ways]]
            for clock in CLOCKS
        ]

    x, weight = (
        image(256, 128),
        torch.randn(256, 256, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last),
    )
    convolution = best(2 * 128**2 * weight.numel(), lambda: F.conv2d(x, weight, padding=1))

    tokens, dense = image(1024, 128), torch.randn(2048, 1024).to(dtype)
    rows = tokens.permute(0, 2, 3, 1).reshape(-1, 1024)
    product = best(
        2 * len(rows) * dense.numel(),
        lambda: F.linear(rows, dense),
        lambda: F.conv2d(tokens, dense[:, :, None, None]),
    )

    query, key = torch.randn(2, 1, 2, 4096, 512).to(dtype)
    attention = best(
        4 * query.numel() * 4096,
        lambda: F.scaled_dot_product_attention(query, key, key),
        lambda: (query @ key.mT * 512**-0.5).softmax(-1) @ key,
    )

    planes = torch.randn(3, 32, 256, 256)
    table, points = planes.permute(0, 2, 3, 1).reshape(-1, 32), torch.rand(1 << 17, 3) * 2 - 1
    cells = ((points + 1) * 127).int()
    index = (
        cells[:, :, None]
        + 256 * cells.roll(-1, 1)[:, :, None]
        + torch.tensor([0, 1, 256, 257], dtype=torch.int32)
    ).view(-1, 12)
    share, grid = (
        torch.rand(index.shape),
        torch.stack([points[:, [i, (i + 1) % 3]] for i in range(3)])[:, :, None],
    )
    look_up = best(
        3 * len(points),
        lambda: F.embedding_bag(index, table, mode="sum", per_sample_weights=share),
        lambda: F.grid_sample(planes, grid, align_corners=False),
    )
    hidden = torch.rand(1 << 14, 64)  # in a core's cache
    softplus = best(hidden.numel(), lambda: hidden.clamp_(0, 1).exp_().add_(1.0).log_())
    return {
        clock: Rates(*rates)
        for clock, *rates in zip(CLOCKS, convolution, product, attention, look_up, softplus, strict=True)
    }


def operations(sizes: Sizes, scale: float = 1.0) -> dict[str, Counter[str]]:
    """Operations by part and unit (see Rates), of one portrait, motion and view; `scale` is the motion's."""
    with torch.device("meta"):
        psi = Psi(sizes)
        inputs = (
            torch.empty(1, 3, sizes.image, sizes.image),
            *torch.empty(2, 1, sizes.motion.dims).unbind(0),
            torch.empty(1, 1, 25),
        )
    with torch.inference_mode(), FlopCounterMode(display=False, depth=None) as counter:
        psi(*inputs, scale)
    counts = counter.get_flop_counts()
    found: dict[str, Counter[str]] = {name: Counter() for name in PARTS}
    # Innermost modules count with everything, these with what they do themselves.
    outer = {Attention: aten.bmm, SynthesisLayer: aten.convolution, ToRGB: aten.convolution}
    for name, module in psi.named_modules():
        only = outer.get(type(module))
        if only or not any(True for _ in module.children()):
            for kind, amount in counts.get(f"Psi.{name}", {}).items():
                if only in (None, kind):
                    unit = "convolution" if kind == aten.convolution else "attention" if only else "product"
                    found[_part(name)][unit] += amount
    # The first convolution of the tri-plane decoder is linear, and half of its input is the source's.
    detail = 2 * 9 * sizes.psi.detail_channels * sizes.psi.decoder_channels * sizes.plane_resolution**2
    found["source"]["convolution"] += detail
    found["planes"]["convolution"] -= detail
    samples = sizes.rays**2 * (sizes.samples + sizes.samples_fine)
    # A sigmoid of a colour costs about half of a softplus.
    found["rays"] |= {
        "look_up": 3 * samples,
        "softplus": samples * (sizes.decoder_hidden + sizes.feature_channels // 2),
    }
    return found


def _part(name: str) -> str:
    if name.startswith(SOURCE):
        return "source"
    return {"decoder": "rays", "superresolution": "superresolution"}.get(name.split(".")[0], "planes")


def floor(parts: dict[str, Counter[str]], rates: Rates) -> dict[str, float]:
    """Seconds of each part."""
    return {
        part: sum(amount / (getattr(rates, unit) * 1e9) for unit, amount in units.items())
        for part, units in parts.items()
    }


def _fused(x: tuple, other_or_weight: tuple, *rest: object, out_shape: tuple, **_: object) -> int:
    weight = (
        rest[0] if rest and isinstance(rest[0], torch.Size | tuple) and len(rest[0]) == 4 else other_or_weight
    )
    return 2 * torch.Size(out_shape).numel() * torch.Size(weight[1:]).numel()


def _table(table: tuple, index: tuple, *_: object, **__: object) -> int:
    return 2 * torch.Size(index).numel() * table[1]


def _grid(image: tuple, grid: tuple, *_: object, **__: object) -> int:
    return 8 * image[1] * torch.Size(grid[:-1]).numel()


def counted() -> FlopCounterMode:
    """Counts what the fast path adds to PyTorch's own list too: convolutions of oneDNN, look-ups (4 texels, 2 operations a channel)."""
    own = torch.ops.mkldnn._convolution_pointwise
    return FlopCounterMode(
        display=False,
        custom_mapping={own: _fused, aten._embedding_bag_forward_only: _table, aten.grid_sampler_2d: _grid},
    )
