"""`psi4d bench`: the fast path of Psi beside its reference path and beside the floor of this machine, all in one run.

Weights come from the number rule. Its planes are a fog without a surface, which is not what a renderer that skips empty space meets, so
plane channel 0 is replaced, for both paths, by a formula: an opaque ellipsoid about as large in the picture as a head, coloured by what
the network makes of the other channels. Nothing of it is fitted. One case keeps the fog.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.fast import FastPsi
from model.psi import Psi
from model.reference import ReferencePsi
from model.renderer import compose
from model.sizes import Sizes
from pipeline.bench_floor import PARTS, Rates, counted, floor, measure_rates, operations
from pipeline.files import write_bytes
from pipeline.number_rule import NumberRule, camera

HEAD = ((0.0, 0.03, 0.05), (0.24, 0.32, 0.28))  # centre and half-axes of the ellipsoid, world units
INSIDE = 20.0  # twice its hidden unit at the centre
DENSITY = 15.0  # sigma for each unit of that
OUTSIDE = -12.0  # sigma of empty space
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Facts of the official code on two cores, float32, a picture at a time, seconds.
OFFICIAL = {"full frame": 12.97, "source cached": 10.69}


@dataclass(frozen=True)
class Case:
    """What is timed: everything, or all but what depends on the source alone; Psi or Psi_3d (motion scale 0)."""

    name: str
    batch: int = 1
    views: int = 1
    cached: bool = False
    scale: float = 1.0
    fog: bool = False


CASES = (
    Case("full frame"),
    Case("full frame, batch 4", batch=4),
    Case("source cached", cached=True),
    Case("source cached, batch 4", batch=4, cached=True),
    Case("Psi_3d, 1 view", scale=0.0),
    Case("Psi_3d, 4 views", views=4, scale=0.0),
    Case("Psi_3d, 8 views", views=8, scale=0.0),
    Case("full frame, fog", fog=True),
)


@dataclass(frozen=True)
class Result:
    """One case and type; seconds of the fast path by part, too."""

    case: str
    dtype: str
    reference_seconds: float
    seconds: float
    floor_seconds: float
    parts: dict[str, float]
    floor_parts: dict[str, float]
    reference_gflop: float
    gflop: float
    ceiling_share: float
    reference_peak_mb: float | None
    peak_mb: float | None
    psnr: float  # of the fast path's pictures against the reference's in float32, dB
    colours: float  # of all samples those whose colour was worked out

    def __str__(self) -> str:
        official = OFFICIAL.get(self.case)
        return (
            f"{self.case:22} {self.dtype}  {self.reference_seconds:8.3f} {self.seconds:8.3f} {self.reference_seconds / self.seconds:6.1f}x "
            f"{f'{official / self.seconds:.1f}x' if official else '':>8} {self.seconds / self.floor_seconds:6.2f} "
            f"{self.reference_gflop:8.1f} {self.gflop:8.1f} {100 * self.ceiling_share:5.0f} % "
            f"{_mb(self.reference_peak_mb)} {_mb(self.peak_mb)} {self.psnr:7.1f} {100 * self.colours:5.0f} %"
        )


HEADER = (
    f"{'case':22} type  {'ref s':>8} {'fast s':>8} {'ratio':>7} {'official':>8} {'/floor':>6} {'ref GF':>8} {'GFLOP':>8} {'ceiling':>7} "
    f"{'ref MB':>6} {'MB':>6} {'PSNR dB':>7} {'colours':>7}"
)


class Scene:
    """Inputs of a case by the number rule, and what is done to the planes."""

    def __init__(self, sizes: Sizes, rule: NumberRule) -> None:
        self.sizes, self.rule = sizes, rule
        self.fog = rule.fill(Psi(sizes), ("superresolution.", "decoder."))
        self.psi = replace_decoder(self.fog)
        side = (torch.arange(sizes.plane_resolution) + 0.5) / sizes.plane_resolution * sizes.box - sizes.box / 2
        x, y, z = (((side - centre) / half).square() for centre, half in zip(*HEAD, strict=True))
        # The mean of the planes is 1 - r^2 / 2, and 1/2 on the surface. Rows follow the second coordinate of a plane, columns the first.
        first, second = 3.0 - 1.5 * (y[:, None] + x), (-1.5 * z[:, None]).expand(-1, len(z))
        self.ellipsoid = torch.stack([first, second, torch.zeros_like(first)])

    def inputs(self, case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sizes, rule = self.sizes, self.rule
        images = torch.cat([rule.image(f"bench{i}", sizes.image) for i in range(case.batch)])
        motions = (rule.tensor(name, (case.batch, sizes.motion.dims)) for name in ("motion_app", "motion"))
        cameras = torch.cat([camera(0.1 + 0.2 * i - 0.1 * case.views, 0.05) for i in range(case.views)])
        return images, *motions, cameras.expand(case.batch, -1, -1)

    @torch.inference_mode()
    def planes(self, planes_B3CRR: Tensor, case: Case) -> Tensor:
        """The planes as they are rendered."""
        if not case.fog:
            planes_B3CRR[:, :, 0] = self.ellipsoid
        return planes_B3CRR


def replace_decoder(psi: Psi) -> Psi:
    """The same network with a decoder whose first hidden unit reads plane channel 0 and makes nearly all of the density."""
    with torch.device("meta"):
        other = Psi(psi.sizes)
    own = {name: value.clone() if name.startswith("decoder.") else value for name, value in psi.state_dict().items()}
    hidden, sigma = (layer.weight_gain for layer in (psi.decoder.net[0], psi.decoder.out_sigma))
    own["decoder.net.0.weight"][:, 0] = 0.0
    own["decoder.net.0.weight"][0] = 0.0
    own["decoder.net.0.weight"][0, 0] = INSIDE / hidden
    own["decoder.net.0.bias"][0] = -INSIDE / 2
    own["decoder.out_sigma.weight"] *= 0.05
    own["decoder.out_sigma.weight"][0, 0] = DENSITY / sigma
    own["decoder.out_sigma.bias"][:] = OUTSIDE
    own["decoder.out_rgb.weight"][:, 0] = 0.0
    other.load_state_dict(own, assign=True)
    return other.eval().requires_grad_(False)


class Timed:
    """Runs things and remembers the seconds of each, its operations and the most memory."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.gflop = 0.0
        self.peak_mb: float | None = None

    def part(self, name: str, run: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        result = run(*arguments)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def measured(run: Callable[[Timed], Tensor], budget: float) -> tuple[Timed, Tensor]:
    """The median by time of several runs of `run(timed)` after one that counts operations and memory; as many as fit into `budget` seconds.
    The first run counts where nothing else fits."""
    first = Timed()
    forget_peak()
    with counted() as counter:
        picture = run(first)
    peak = peak_mb()
    runs: list[Timed] = []
    while len(runs) < 9 and sum(one.total for one in runs) + first.total < budget:
        runs.append(Timed())
        run(runs[-1])
    middle = sorted(runs or [first], key=lambda one: one.total)[len(runs) // 2]
    middle.gflop, middle.peak_mb = counter.get_total_flops() / 1e9, peak
    return middle, picture


def forget_peak() -> None:
    """Lets the system count the peak memory of this process anew, where it can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_mb() -> float | None:
    """Peak memory of this process since `forget_peak`."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)


def run_reference(scene: Scene, case: Case, dtype: torch.dtype, timed: Timed) -> Tensor:
    """The pictures of a case; the tri-planes are made once, `bench` counts them for each view."""
    network = ReferencePsi(scene.fog if case.fog else scene.psi)
    images, own, driving, cameras = scene.inputs(case)
    with torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext():
        planes = timed.part("planes", network.planes, images, own, driving, case.scale).float()
        planes = scene.planes(planes, case)
        pictures = [timed.part("render", network.render, planes, images, cameras[:, i : i + 1]) for i in range(case.views)]
    return torch.stack([picture.image.float() for picture in pictures], 1).flatten(0, 1)


def run_fast(fast: FastPsi, scene: Scene, case: Case, colours: list[float], timed: Timed) -> Tensor:
    """The pictures of a case; `colours` gets the share of the samples whose colour was worked out."""
    images, own, driving, cameras = scene.inputs(case)
    start = Timed() if case.cached else timed
    source = start.part("source", fast.source, images, own, case.scale)
    planes = scene.planes(timed.part("planes", fast.planes, source, driving), case)
    with torch.inference_mode():
        rays, share = timed.part("rays", fast.renderer, planes, cameras, None, fast.nothing, fast.share)
        rendering = compose(rays, source.background_BFnn)
        colours[:] = [share]
        return timed.part("superresolution", fast.superresolution, rendering.feature)


def bench(sizes: Sizes, budget: float = 5.0) -> Iterator[str | dict[str, Any]]:
    """Lines of text as they come, and at the end everything as a dictionary."""
    parts = operations(sizes)
    rates = {name: measure_rates(dtype) for name, dtype in TYPES.items()}
    yield f"threads {torch.get_num_threads()}; " + "; ".join(describe(name, rate) for name, rate in rates.items())
    predicted = {name: floor(parts, rate) for name, rate in rates.items()}
    for part in PARTS:
        counts = ", ".join(f"{unit} {amount / 1e9:.2f}" for unit, amount in parts[part].items() if amount)
        yield f"floor of {part:16} " + " ".join(f"{name} {predicted[name][part]:.3f} s" for name in TYPES) + f"  (10^9: {counts})"
    yield HEADER
    scene = Scene(sizes, NumberRule())
    results: list[Result] = []
    exact: dict[Case, Tensor] = {}
    passes: dict[tuple[Case, str], Timed] = {}
    for name, dtype in TYPES.items():
        for case in CASES:
            plain = replace(case, name="", cached=False)
            if (plain, name) not in passes:
                passes[plain, name], pictures = measured(partial(run_reference, scene, plain, dtype), budget)
                exact.setdefault(plain, pictures)
        fast = {fog: FastPsi(scene.fog if fog else scene.psi, dtype) for fog in (False, True)}
        for case in CASES:
            colours: list[float] = []
            run = partial(run_fast, fast[case.fog], scene, case, colours)
            run(Timed())  # lays out the weights
            timed, pictures = measured(run, 4 * budget)
            plain = passes[replace(case, name="", cached=False), name]
            needed = floor_of(case, predicted[name])
            results.append(
                Result(
                    case.name,
                    name,
                    # Single passes make the tri-planes again for each view.
                    plain.seconds["planes"] * case.views + plain.seconds["render"],
                    timed.total,
                    sum(needed.values()),
                    timed.seconds,
                    needed,
                    plain.gflop,
                    timed.gflop,
                    timed.gflop / timed.total / rates[name].ceiling,
                    plain.peak_mb,
                    timed.peak_mb,
                    psnr(pictures, exact[replace(case, name="", cached=False)]),
                    colours[0],
                )
            )
            yield str(results[-1])
            yield "    " + ", ".join(f"{part} {seconds:.3f} s (floor {needed[part]:.3f})" for part, seconds in timed.seconds.items())
        del fast
    yield {"sizes": asdict(sizes), "threads": torch.get_num_threads(), "rates": {name: asdict(rate) for name, rate in rates.items()}} | {
        "results": [asdict(result) for result in results]
    }


def floor_of(case: Case, predicted: dict[str, float]) -> dict[str, float]:
    times = {"source": 0 if case.cached else 1, "planes": 1, "rays": case.views, "superresolution": case.views}
    return {part: case.batch * times[part] * predicted[part] for part in PARTS}


def describe(name: str, rates: Rates) -> str:
    numbers = ", ".join(f"{unit.replace('_', '-')} {rate:.3g}" for unit, rate in asdict(rates).items())
    return f"10^9 a second in {name}: {numbers}"


def psnr(found: Tensor, wanted: Tensor) -> float:
    """Of pictures in [-1, 1], dB."""
    return float(10 * torch.log10(4.0 / (found.double() - wanted.double()).square().mean().clamp_min(1e-20)))


def write_json(path: Path, results: dict[str, Any]) -> None:
    write_bytes(path, (json.dumps(results, indent=1) + "\n").encode())


def _mb(value: float | None) -> str:
    return f"{'-' if value is None else round(value):>6}"
