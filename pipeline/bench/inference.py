"""`psi4d bench`: Psi's fast path beside its reference path and the floor of this machine, in one run."""

from collections.abc import Iterator
from contextlib import nullcontext
from copy import copy
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from model.fast.psi import FastPsi, Source
from model.fast.renderer import FastRenderer
from model.psi.reference import ReferencePsi
from model.sizes import Sizes
from model.volume.renderer import compose
from pipeline.bench.clock import CLOCKS, Seconds, Timed, measured, total
from pipeline.bench.floor import PARTS, Rates, floor, measure_rates, operations
from pipeline.bench.machine import machine_facts
from pipeline.bench.report import HEADER, Result, floor_lines, part_line, rate_lines, result_line
from pipeline.bench.scene import CASES, BenchCase, Scene
from pipeline.core.pictures import decibels
from pipeline.parity.numbers import NumberRule

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class References:
    """Passes of the reference path, one for each number type, motion scale and fog, and their pictures."""

    def __init__(self, scene: Scene, budget: float) -> None:
        self.passes: dict[tuple[str, float, bool], Timed] = {}
        self.exact: dict[tuple[float, bool, int, int], Tensor] = {}
        for name, dtype in TYPES.items():
            for case in CASES:
                key = (name, case.scale, case.fog)
                # At paper size a pass takes many seconds, so that cases share those that are the same for
                # them.
                if key not in self.passes:
                    first = partial(run_reference, scene, case, dtype, 0, 0)
                    self.passes[key], image = measured(first, budget)
                    self.exact.setdefault((case.scale, case.fog, 0, 0), image)
                self._compare(scene, case)

    def _compare(self, scene: Scene, case: BenchCase) -> None:
        """Makes the pictures in float32 that the case's are compared with."""
        for head, view in case.compared:
            key = (case.scale, case.fog, head, view)
            if key not in self.exact:
                self.exact[key] = run_reference(scene, case, torch.float32, head, view, Timed())

    def of(self, case: BenchCase, name: str) -> Timed:
        """The pass that a case in a number type is compared with."""
        return self.passes[name, case.scale, case.fog]

    def psnr(self, images_BV3SS: Tensor, case: BenchCase) -> float:
        """The worst of the compared pictures, dB."""
        values = []
        for head, view in case.compared:
            wanted = self.exact[case.scale, case.fog, head, view]
            values.append(psnr(images_BV3SS[head, view], wanted[0]))
        return min(values)


def run_reference(
    scene: Scene,
    case: BenchCase,
    dtype: torch.dtype,
    head: int,
    view: int,
    timed: Timed,
) -> Tensor:
    """One picture of a case, everything for it made anew."""
    network = ReferencePsi(scene.fog if case.fog else scene.psi)
    images, own, driving, cameras = (part[head : head + 1] for part in scene.inputs(case))
    camera = cameras[:, view : view + 1]
    is_exact = dtype == torch.float32
    with nullcontext() if is_exact else torch.autocast("cpu", dtype):
        taken_by = scene.cameras_of_sources(case)[:1]
        planes = timed.part("planes", network.planes, images, own, driving, case.scale, taken_by)
        planes = scene.planes(planes, case)
        rendering = timed.part("render", network.render, planes, images, camera)
        return rendering.image.float()


def run_fast(
    fast: FastPsi,
    scene: Scene,
    case: BenchCase,
    known: Source | None,
    colours: list[float],
    timed: Timed,
) -> Tensor:
    """The pictures of a case; `known` is the cached source.

    `colours` gets the share of the samples whose colour was worked out.
    """
    images, own, driving, cameras = scene.inputs(case)
    taken_by = scene.cameras_of_sources(case)
    source = known or timed.part("source", fast.source, images, own, case.scale, taken_by)
    planes = timed.part("planes", fast.planes, source, driving)
    planes = scene.planes(planes, case)
    with torch.inference_mode():
        rays, share = timed.part("rays", fast.renderer, planes, cameras, None, fast.nothing, fast.share)
        rendering = compose(rays, source.background_BFnn)
        colours[:] = [share]
        return timed.part("superresolution", fast.picture, rendering, planes, cameras)


def bench(
    sizes: Sizes,
    compiled: bool = False,
    budget: float = 5.0,
) -> Iterator[str | dict[str, Any]]:
    """Lines of text as they come, and at the end everything as a dictionary.

    `compiled`: the fast path by torch.compile. `budget`: seconds for repeating a case.
    """
    scales = sorted({case.scale for case in CASES})
    counts = {scale: operations(sizes, scale) for scale in scales}
    rates = {name: measure_rates(sizes, dtype) for name, dtype in TYPES.items()}
    floors = {}
    for name in TYPES:
        for scale, parts in counts.items():
            floors[name, scale] = _floor(parts, rates[name])
    yield from rate_lines(rates, torch.get_num_threads())
    yield from floor_lines(counts[1.0], {name: floors[name, 1.0] for name in TYPES})
    yield HEADER

    # The references come first, while the process treats memory as PyTorch leaves it: the first FastPsi
    # changes that (model/fast/memory.py).
    scene = Scene(sizes, NumberRule())
    references = References(scene, budget)
    results: list[Result] = []
    for name, dtype in TYPES.items():
        fast = FastPsi(scene.psi, dtype, compiled=compiled)
        in_fog = copy(fast)
        in_fog.renderer = FastRenderer(
            scene.fog.decoder,
            sizes.rays,
            sizes.samples,
            sizes.samples_fine,
            sizes.box,
        )
        # The first run lays out the weights.
        run_fast(fast, scene, CASES[0], None, [], Timed())
        # In fog the same networks are rendered by the decoder that was not replaced.
        for case in CASES:
            own = in_fog if case.fog else fast
            result = _time_case(own, scene, case, name, references, budget, floors[name, case.scale], rates)
            results.append(result)
            yield result_line(result)
            yield part_line(result)
    rates_of = {}
    for name, by_clock in rates.items():
        rates_of[name] = {clock: asdict(rate) for clock, rate in by_clock.items()}
    yield {
        "benchmark": "inference",
        "machine": machine_facts(),
        "compiled": compiled,
        "sizes": asdict(sizes),
        "rates": rates_of,
        "results": [asdict(result) for result in results],
    }


def _floor(parts: dict, rates: dict[str, Rates]) -> dict[str, Seconds]:
    """The least seconds of each part, by both clocks."""
    walls = floor(parts, rates["wall"])
    works = floor(parts, rates["work"])
    return {part: Seconds(walls[part], works[part]) for part in PARTS}


def _time_case(
    fast: FastPsi,
    scene: Scene,
    case: BenchCase,
    name: str,
    references: References,
    budget: float,
    least: dict[str, Seconds],
    rates: dict[str, dict[str, Rates]],
) -> Result:
    """One case in the number type `name`."""
    known = None
    # A cached source is made beforehand, and its time belongs to no picture.
    if case.cached:
        images, own, _, _ = scene.inputs(case)
        known = fast.source(images, own, case.scale, scene.cameras_of_sources(case))
    colours: list[float] = []
    run = partial(run_fast, fast, scene, case, known, colours)
    # At least one run besides the counting one, which takes longer.
    timed, images = measured(run, budget, least=1)
    images = images.unflatten(0, (case.batch, case.views))
    reference = references.of(case, name)
    ceilings = [rates[name][clock].ceiling for clock in CLOCKS]
    return Result(
        case=case.name,
        dtype=name,
        reference=total(reference.parts).times(case.pictures),
        parts=timed.parts,
        floor={part: least[part].times(case.count(part)) for part in PARTS},
        reference_gflop=reference.gflop * case.pictures,
        gflop=timed.gflop,
        ceiling=Seconds(*ceilings),
        reference_peak_mb=reference.peak_mb,
        peak_mb=timed.peak_mb,
        psnr=references.psnr(images, case),
        colours=colours[0],
    )


def psnr(found: Tensor, wanted: Tensor) -> float:
    """Of pictures in [-1, 1], dB."""
    # Summed in double precision: the errors of float32 are small, and the pixels many.
    difference = found.double() - wanted.double()
    error = difference.square().mean()
    return float(decibels(error.clamp_min(1e-20)))
