"""`psi4d bench`: the fast path of Psi beside its reference path and beside the floor of this machine, all in one run.

Weights come from the number rule. Its planes are a fog without a surface, which is not what a renderer that skips empty space meets, so
plane channel 0 is replaced, for both paths, by a formula: an opaque ellipsoid about as large in the picture as a head, coloured by what
the network makes of the other channels. Nothing of it is fitted. One case keeps the fog.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import copy
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.fast.memory import give_back
from model.fast.psi import FastPsi, Source
from model.fast.renderer import FastRenderer
from model.psi.network import Psi
from model.psi.reference import ReferencePsi
from model.sizes import Sizes
from model.volume.renderer import compose
from pipeline.bench.floor import CLOCKS, PARTS, Clock, Seconds, counted, floor, measure_rates, operations
from pipeline.core.files import write_bytes
from pipeline.parity.numbers import NumberRule, camera

HEAD = ((0.0, 0.03, 0.05), (0.24, 0.32, 0.28))  # centre and half-axes of the ellipsoid, world units
INSIDE = 20.0  # twice its hidden unit at the centre
DENSITY = 15.0  # sigma for each unit of that
OUTSIDE = -12.0  # sigma of empty space
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class BenchCase:
    """What is timed: everything, or all but what depends on the source alone; Psi or Psi_3d (motion scale 0)."""

    name: str
    batch: int = 1
    views: int = 1
    cached: bool = False
    scale: float = 1.0
    fog: bool = False


CASES = (
    BenchCase("full frame"),
    BenchCase("source cached", cached=True),
    BenchCase("Psi_3d, 1 view", scale=0.0),
    BenchCase("Psi_3d, 4 views", views=4, scale=0.0),
    BenchCase("Psi_3d, 8 views", views=8, scale=0.0),
    BenchCase("full frame, fog", fog=True),
    BenchCase("full frame, batch 4", batch=4),
    BenchCase("source cached, batch 4", batch=4, cached=True),
)


@dataclass(frozen=True)
class Result:
    """One case and type. Seconds by part, on the clocks of `Seconds`; the reference's are those of single passes, one for each picture."""

    case: str
    dtype: str
    reference: Seconds
    parts: dict[str, Seconds]
    floor: dict[str, Seconds]
    reference_gflop: float
    gflop: float
    ceiling: Seconds  # 10^9 operations a second of the fastest unit
    reference_peak_mb: float | None  # of one pass
    peak_mb: float | None
    psnr: float  # of the first and the last picture against the reference's in float32, dB
    colours: float  # of all samples those whose colour was worked out

    def __str__(self) -> str:
        fast, least = total(self.parts), total(self.floor)
        both = [
            f"{reference:8.2f} {own:8.2f} {reference / own:6.1f}x {own / lowest:6.2f} {100 * self.gflop / own / ceiling:4.0f} %"
            for reference, own, lowest, ceiling in zip(
                *map(astuple, (self.reference, fast, least, self.ceiling)), strict=True
            )
        ]
        return (
            f"{self.case:22} {self.dtype}  {'  '.join(both)}  {self.reference_gflop:7.0f} {self.gflop:7.0f} "
            f"{_mb(self.reference_peak_mb)} {_mb(self.peak_mb)} {self.psnr:6.1f} {100 * self.colours:5.0f} %"
        )


CLOCK_HEADER = f"{'ref s':>8} {'fast s':>8} {'ratio':>7} {'/floor':>6} {'ceil.':>6}"
HEADER = (
    f"{'':22}       {'on the wall':>39}  {'work / threads':>39}\n"
    f"{'case':22} type  {CLOCK_HEADER}  {CLOCK_HEADER}  {'ref GF':>7} {'GFLOP':>7} {'ref MB':>6} {'MB':>6} {'PSNR':>6} {'colours':>7}"
)


class Scene:
    """Inputs of a case by the number rule, and what is done to the planes."""

    def __init__(self, sizes: Sizes, rule: NumberRule) -> None:
        self.sizes, self.rule = sizes, rule
        self.fog = rule.fill(Psi(sizes), ("superresolution.", "decoder."))
        self.psi = replace_decoder(self.fog)
        side = (
            torch.arange(sizes.plane_resolution) + 0.5
        ) / sizes.plane_resolution * sizes.box - sizes.box / 2
        x, y, z = (((side - centre) / half).square() for centre, half in zip(*HEAD, strict=True))
        # The mean of the planes is 1 - r^2 / 2, and 1/2 on the surface. Rows follow the second coordinate of a plane, columns the first.
        first, second = 3.0 - 1.5 * (y[:, None] + x), (-1.5 * z[:, None]).expand(-1, len(z))
        self.ellipsoid = torch.stack([first, second, torch.zeros_like(first)])

    def inputs(self, case: BenchCase) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sizes, rule = self.sizes, self.rule
        images = torch.cat([rule.image(f"bench{i}", sizes.image) for i in range(case.batch)])
        motions = (rule.tensor(name, (case.batch, sizes.motion.dims)) for name in ("motion_app", "motion"))
        cameras = torch.cat([camera(0.3 - 0.12 * i, 0.05) for i in range(case.views)])
        return images, *motions, cameras.expand(case.batch, -1, -1)

    @torch.inference_mode()
    def planes(self, planes_B3CRR: Tensor, case: BenchCase) -> Tensor:
        """The planes as they are rendered."""
        if not case.fog:
            planes_B3CRR[:, :, 0] = self.ellipsoid
        return planes_B3CRR


def replace_decoder(psi: Psi) -> Psi:
    """The same network with a decoder whose first hidden unit reads plane channel 0 and makes nearly all of the density."""
    with torch.device("meta"):
        other = Psi(psi.sizes)
    own = {
        name: value.clone() if name.startswith("decoder.") else value
        for name, value in psi.state_dict().items()
    }
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
    """Runs things and remembers the seconds of each, and of all together operations and the most memory."""

    def __init__(self) -> None:
        self.parts: dict[str, Seconds] = {}
        self.gflop = 0.0
        self.peak_mb: float | None = None

    def part(self, name: str, run: Callable[..., Any], *arguments: Any) -> Any:
        clock = Clock()
        result = run(*arguments)
        self.parts[name] = clock.read()
        return result


def total(parts: dict[str, Seconds]) -> Seconds:
    return sum(parts.values(), start=Seconds(0.0, 0.0))


def measured(run: Callable[[Timed], Tensor], budget: float, least: int = 0) -> tuple[Timed, Tensor]:
    """The median by time of the runs of `run(timed)` that fit into `budget` seconds, without the first, which counts operations and memory.
    That one counts where nothing else fits and `least` is 0; while operations are counted the rays are those of a single thread."""
    first = Timed()
    forget_peak()
    with counted() as counter:
        pictures = run(first)
    peak = peak_mb()
    runs: list[Timed] = []
    while len(runs) < least or (
        len(runs) < 9 and sum(total(one.parts).wall for one in [first, *runs]) < budget
    ):
        runs.append(Timed())
        run(runs[-1])
    middle = sorted(runs or [first], key=lambda one: total(one.parts).wall)[len(runs) // 2]
    middle.gflop, middle.peak_mb = counter.get_total_flops() / 1e9, peak
    return middle, pictures


def forget_peak() -> None:
    """Lets the system count the peak memory of this process anew, where it can."""
    give_back()
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


def run_reference(
    scene: Scene, case: BenchCase, dtype: torch.dtype, head: int, view: int, timed: Timed
) -> Tensor:
    """One picture of a case, everything for it made anew."""
    network = ReferencePsi(scene.fog if case.fog else scene.psi)
    images, own, driving, cameras = (part[head : head + 1] for part in scene.inputs(case))
    with torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext():
        planes = timed.part("planes", network.planes, images, own, driving, case.scale).float()
        return timed.part(
            "render", network.render, scene.planes(planes, case), images, cameras[:, view : view + 1]
        ).image.float()


def run_fast(
    fast: FastPsi, scene: Scene, case: BenchCase, known: Source | None, colours: list[float], timed: Timed
) -> Tensor:
    """The pictures of a case; `known` is the cached source, `colours` gets the share of the samples whose colour was worked out."""
    images, own, driving, cameras = scene.inputs(case)
    source = known or timed.part("source", fast.source, images, own, case.scale)
    planes = scene.planes(timed.part("planes", fast.planes, source, driving), case)
    with torch.inference_mode():
        rays, share = timed.part("rays", fast.renderer, planes, cameras, None, fast.nothing, fast.share)
        rendering = compose(rays, source.background_BFnn)
        colours[:] = [share]
        return timed.part("superresolution", fast.superresolution, rendering.feature)


def bench(sizes: Sizes, compiled: bool = False, budget: float = 5.0) -> Iterator[str | dict[str, Any]]:
    """Lines of text as they come, and at the end everything as a dictionary. `compiled`: the fast path by torch.compile. `budget`: seconds
    for repeating a case."""
    counts = {scale: operations(sizes, scale) for scale in sorted({case.scale for case in CASES})}
    rates = {name: measure_rates(dtype) for name, dtype in TYPES.items()}
    least = {
        (name, scale): {
            part: Seconds(*(floor(parts, rates[name][clock])[part] for clock in CLOCKS)) for part in PARTS
        }
        for name in TYPES
        for scale, parts in counts.items()
    }
    yield f"threads {torch.get_num_threads()}; 10^9 a second on the wall (work / threads):"
    for name, by_clock in rates.items():
        pairs = zip(*(asdict(by_clock[clock]).items() for clock in CLOCKS), strict=True)
        yield f"{name}  " + ", ".join(
            f"{unit.replace('_', '-')} {wall:.3g} ({work:.3g})" for (unit, wall), (_, work) in pairs
        )
    for part in PARTS:
        amounts = ", ".join(
            f"{unit.replace('_', '-')} {amount / 1e9:.3g}"
            for unit, amount in counts[1.0][part].items()
            if amount
        )
        times = ", ".join(
            f"{name} {least[name, 1.0][part].wall:.3f} s ({least[name, 1.0][part].work:.3f})"
            for name in TYPES
        )
        yield f"floor of {part:16} {times}; 10^9 of {amounts}"
    yield HEADER
    scene = Scene(sizes, NumberRule())
    results: list[Result] = []
    exact: dict[tuple[float, bool, int, int], Tensor] = {}
    # The references come first, while the process treats memory as PyTorch leaves it: the first FastPsi changes that (model/fast/memory.py).
    passes: dict[tuple[str, float, bool], Timed] = {}
    for name, dtype in TYPES.items():
        for case in CASES:
            kind = (case.scale, case.fog)
            if (name, *kind) not in passes:
                passes[name, *kind], image = measured(
                    partial(run_reference, scene, case, dtype, 0, 0), budget
                )
                exact.setdefault((*kind, 0, 0), image)
            for place in _compared(case):
                if (*kind, *place) not in exact:
                    exact[*kind, *place] = run_reference(scene, case, torch.float32, *place, Timed())
    for name, dtype in TYPES.items():
        fast = {False: FastPsi(scene.psi, dtype, compiled=compiled)}
        fast[True] = copy(fast[False])
        fast[True].renderer = FastRenderer(
            scene.fog.decoder, sizes.rays, sizes.samples, sizes.samples_fine, sizes.box
        )
        run_fast(fast[False], scene, CASES[0], None, [], Timed())  # lays out the weights
        for case in CASES:
            kind = (case.scale, case.fog)
            plain = passes[name, *kind]
            single, colours = total(plain.parts), []
            known = fast[case.fog].source(*scene.inputs(case)[:2], case.scale) if case.cached else None
            timed, images = measured(
                partial(run_fast, fast[case.fog], scene, case, known, colours), budget, least=1
            )
            images = images.unflatten(0, (case.batch, case.views))
            count, once = (
                case.batch * case.views,
                {"source": 0 if case.cached else case.batch, "planes": case.batch},
            )
            results.append(
                Result(
                    case=case.name,
                    dtype=name,
                    reference=single.times(count),
                    parts=timed.parts,
                    floor={
                        part: least[name, case.scale][part].times(once.get(part, count)) for part in PARTS
                    },
                    reference_gflop=plain.gflop * count,
                    gflop=timed.gflop,
                    ceiling=Seconds(*(rates[name][clock].ceiling for clock in CLOCKS)),
                    reference_peak_mb=plain.peak_mb,
                    peak_mb=timed.peak_mb,
                    psnr=min(psnr(images[place], exact[*kind, *place][0]) for place in _compared(case)),
                    colours=colours[0],
                )
            )
            yield str(results[-1])
            now = results[-1]
            yield "    " + ", ".join(
                f"{part} {own.wall:.3f} s, floor {now.floor[part].wall:.3f} ({own.work:.3f}, {now.floor[part].work:.3f})"
                for part, own in now.parts.items()
            )
    rates_of = {
        name: {clock: asdict(rate) for clock, rate in by_clock.items()} for name, by_clock in rates.items()
    }
    yield {
        "sizes": asdict(sizes),
        "threads": torch.get_num_threads(),
        "rates": rates_of,
        "results": [asdict(result) for result in results],
    }


def _compared(case: BenchCase) -> tuple[tuple[int, int], tuple[int, int]]:
    """Head and view of the pictures that are compared: the first and the last."""
    return (0, 0), (case.batch - 1, case.views - 1)


def psnr(found: Tensor, wanted: Tensor) -> float:
    """Of pictures in [-1, 1], dB."""
    return float(10 * torch.log10(4.0 / (found.double() - wanted.double()).square().mean().clamp_min(1e-20)))


def write_results(path: Path, results: dict[str, Any]) -> None:
    write_bytes(path, (json.dumps(results, indent=1) + "\n").encode())


def _mb(value: float | None) -> str:
    return f"{'-' if value is None else round(value):>6}"
