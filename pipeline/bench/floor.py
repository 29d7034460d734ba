"""The floor of `psi4d bench`: the operations of each part of Psi over the measured rate of their unit.

The operations are those of the published order (`Psi.forward`, counted on tensors without memory), less
what a cached source saves. The units are measured with the library's best call for each: 3x3 convolutions,
matrix products, attention, look-ups in planes.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model.layers.stylegan import SynthesisLayer, ToRGB
from model.layers.transformer import Attention
from model.psi.network import Psi
from model.psi.triplane_decoder import STRIDE
from model.sizes import Sizes
from model.volume.planes import PAIRS
from pipeline.bench.clock import CLOCKS, aten, seconds_of

PARTS = ("source", "planes", "rays", "superresolution")  # once a portrait, a motion, a view, a view
SOURCE = (
    "encoder_global",
    "encoder_detail",
    "background",
    "encoder_canonical.patch_embed",
    "encoder_canonical.trans_blocks_neutral",
    "encoder_canonical.maps_neutral",
    "encoder_canonical.proj_y_neutral",
    "projection.portrait",
    "projection.near",
)
POINTS = 1 << 17  # looked up at once
# Modules that do work themselves beside their innermost modules, and which.
OUTER = {
    Attention: aten.bmm,
    SynthesisLayer: aten.convolution,
    ToRGB: aten.convolution,
}


@dataclass(frozen=True)
class Rates:
    """What this machine reaches in one number type, by one clock.

    10^9 operations, look-ups of a point in a plane, or softplus a second.
    """

    convolution: float
    product: float
    attention: float
    look_up: float  # float32 in any case, as is softplus
    softplus: float

    @property
    def ceiling(self) -> float:
        """The highest rate of arithmetic."""
        return max(self.convolution, self.product, self.attention)


@torch.inference_mode()
def measure_rates(sizes: Sizes, dtype: torch.dtype) -> dict[str, Rates]:
    """By clock; a few seconds of each unit, at the sizes of a network's tri-plane decoder."""
    units = {
        "convolution": _convolution_rates(sizes, dtype),
        "product": _product_rates(sizes, dtype),
        "attention": _attention_rates(sizes, dtype),
        "look_up": _look_up_rates(sizes),
        "softplus": _softplus_rates(sizes),
    }
    found = {}
    for clock in CLOCKS:
        by_unit = {unit: rates[clock] for unit, rates in units.items()}
        found[clock] = Rates(**by_unit)
    return found


def _best(amount: float, *ways: Callable[[], object]) -> dict[str, float]:
    """The rate of the fastest way by each clock, 10^9 a second."""
    # A floor that one library call undercuts is none, so that several are tried.
    times = [seconds_of(way) for way in ways]
    rates = {}
    for clock in CLOCKS:
        fastest = min(getattr(one, clock) for one in times)
        rates[clock] = amount / 1e9 / fastest
    return rates


def _image(channels: int, side: int, dtype: torch.dtype) -> Tensor:
    image = torch.randn(1, channels, side, side)
    return image.to(dtype, memory_format=torch.channels_last)


def _convolution_rates(sizes: Sizes, dtype: torch.dtype) -> dict[str, float]:
    channels = sizes.psi.decoder_channels
    side = sizes.plane_resolution // STRIDE
    x = _image(channels, side, dtype)
    weight = torch.randn(channels, channels, 3, 3).to(dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    amount = 2 * side**2 * weight.numel()
    return _best(amount, lambda: F.conv2d(x, weight, padding=1))


def _product_rates(sizes: Sizes, dtype: torch.dtype) -> dict[str, float]:
    dim = sizes.psi.dim
    side = sizes.plane_resolution // STRIDE
    tokens = _image(dim, side, dtype)
    dense = torch.randn(sizes.psi.mlp_ratio * dim, dim).to(dtype)
    # The same product as a matrix product and as a 1x1 convolution: which is faster depends on the library.
    rows = tokens.permute(0, 2, 3, 1).reshape(-1, dim)
    kernel = dense[:, :, None, None]
    return _best(
        2 * len(rows) * dense.numel(),
        lambda: F.linear(rows, dense),
        lambda: F.conv2d(tokens, kernel),
    )


def _attention_rates(sizes: Sizes, dtype: torch.dtype) -> dict[str, float]:
    # The decoder's keys are a quarter of its tokens; as many queries are enough to measure.
    heads = sizes.psi.decoder_heads
    side = sizes.plane_resolution // STRIDE // 2
    count = side**2
    channels = sizes.psi.dim // heads
    query, key = torch.randn(2, 1, heads, count, channels).to(dtype)

    def by_hand() -> Tensor:
        weights = query @ key.mT * channels**-0.5
        return weights.softmax(-1) @ key

    # Two products of queries and keys, each with a multiplication and an addition.
    return _best(
        4 * query.numel() * count,
        lambda: F.scaled_dot_product_attention(query, key, key),
        by_hand,
    )


def _look_up_rates(sizes: Sizes) -> dict[str, float]:
    channels, side = sizes.plane_channels, sizes.plane_resolution
    planes = torch.randn(3, channels, side, side)
    points = torch.rand(POINTS, 3) * 2 - 1
    table = planes.permute(0, 2, 3, 1)
    table = table.reshape(-1, channels)
    # As a bag of twelve texels a point: four around it in each of three planes.
    cells = ((points + 1) * (side // 2 - 1)).int()
    texel = cells + side * cells.roll(-1, 1)
    corners = torch.tensor([0, 1, side, side + 1], dtype=torch.int32)
    index = texel[:, :, None] + corners
    index = index.view(-1, 12)
    share = torch.rand(index.shape)
    # As the published network does it.
    pairs = [points[:, pair] for pair in PAIRS]
    grid = torch.stack(pairs)[:, :, None]
    return _best(
        3 * len(points),
        lambda: F.embedding_bag(index, table, mode="sum", per_sample_weights=share),
        lambda: F.grid_sample(planes, grid, align_corners=False),
    )


def _softplus_rates(sizes: Sizes) -> dict[str, float]:
    # What fits into a core's cache.
    hidden = torch.rand(1 << 14, sizes.decoder_hidden)
    return _best(hidden.numel(), lambda: hidden.clamp_(0, 1).exp_().add_(1.0).log_())


def operations(sizes: Sizes, scale: float = 1.0) -> dict[str, Counter[str]]:
    """Operations by part and unit (see Rates), of one portrait, motion and view; `scale` is the motion's."""
    with torch.device("meta"):
        psi = Psi(sizes)
        image = torch.empty(1, 3, sizes.image, sizes.image)
        own, driving = torch.empty(2, 1, sizes.motion.dims).unbind(0)
        cameras, taken_by = torch.empty(1, 1, 25), torch.empty(1, 25)
    with torch.inference_mode(), FlopCounterMode(display=False, depth=None) as counter:
        psi(image, own, driving, cameras, scale, camera_source_B25=taken_by)
    counts = counter.get_flop_counts()
    found: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
    for name, module in psi.named_modules():
        counted = counts.get(f"Psi.{name}", {})
        part = _part(name)
        for unit, amount in _own_operations(module, counted).items():
            found[part][unit] += amount
    # The first convolution of the tri-plane decoder is linear, and half of its input is the source's.
    detail = 2 * 9 * sizes.psi.detail_channels * sizes.psi.decoder_channels * sizes.plane_resolution**2
    found["source"]["convolution"] += detail
    found["planes"]["convolution"] -= detail
    # A sigmoid of a colour costs about half of a softplus.
    samples = sizes.rays**2 * (sizes.samples + sizes.samples_fine)
    # A portrait is one plane more.
    planes = 4 if sizes.psi.projected else 3
    if sizes.psi.projected and scale:
        # Its features and colours follow the flow of the motion.
        found["planes"]["look_up"] = sizes.image**2
    found["rays"]["look_up"] = planes * samples
    if psi.portrait_detail is not None:
        found["superresolution"]["look_up"] = sizes.image**2
    found["rays"]["softplus"] = samples * (sizes.decoder_hidden + sizes.feature_channels // 2)
    return found


def _own_operations(module: nn.Module, counts: dict) -> Counter[str]:
    """Operations by unit of what a module does itself: innermost ones everything, OUTER ones some of it."""
    # The counter adds what a module does to all modules around it, so that everything would count several
    # times.
    found: Counter[str] = Counter()
    only = OUTER.get(type(module))
    is_innermost = next(module.children(), None) is None
    for kind, amount in counts.items():
        if only is not None and kind == only:
            found["convolution" if kind == aten.convolution else "attention"] += amount
        elif only is None and is_innermost:
            found["convolution" if kind == aten.convolution else "product"] += amount
    return found


def _part(name: str) -> str:
    if name.startswith(SOURCE):
        return "source"
    first, _, _ = name.partition(".")
    if name.startswith("portrait_detail") and name != "portrait_detail.features":
        return "superresolution"
    by_view = {"decoder": "rays", "superresolution": "superresolution"}
    return by_view.get(first, "planes")


def floor(parts: dict[str, Counter[str]], rates: Rates) -> dict[str, float]:
    """Seconds of each part."""
    # One unit after the other: a machine that overlapped them could be faster.
    seconds = {}
    for part, units in parts.items():
        times = []
        for unit, amount in units.items():
            rate = getattr(rates, unit) * 1e9
            times.append(amount / rate)
        seconds[part] = sum(times)
    return seconds
