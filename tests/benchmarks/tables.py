"""The tables of README.md and NOTES.md: `python -m tests.benchmarks.tables FILE...` prints Markdown.

FILE is what a benchmark wrote: `psi4d bench [--train] --json FILE`, `python -m tests.benchmarks.engine
--json FILE`, and `reading` and `worth` likewise.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.bench.report import markdown, origin


def engine(run: dict[str, Any]) -> str:
    """Frames a second in a bare loop and through the engine."""
    rows = ["| | frames a second | with start and end |", "| --- | --- | --- |"]
    first, again = run["bare"]
    rows.append(f"| bare loop, before and after | {first:.2f}, {again:.2f} | |")
    for workers, rates in run["engine"].items():
        rows.append(f"| {workers} workers | {rates['working']:.2f} | {rates['whole']:.2f} |")
    return "\n".join(rows)


def reading(run: dict[str, Any]) -> str:
    """Samples a CPU second of one thread that each reader brings, and how many the trainer takes."""
    rows = ["| | scale of the project | 512 x 512 |", "| --- | --- | --- |"]
    for name, rate in run["demo"].items():
        rows.append(f"| {name} | {rate:.1f} | {run['paper'][name]:.1f} |")
    rows.append(f"| the trainer takes | {run['trainer']:.1f} | {run['paper_trainer_a_gpu']:.1f} a GPU |")
    return "\n".join(rows)


def worth(run: dict[str, Any]) -> str:
    """CPU seconds of one thread for a step from the cache and one that renders."""
    cached = run["training_step"] + run["reading_a_batch"]
    rendered = run["training_step"] + run["rendering_a_batch"]
    return "\n".join(
        [
            "| | CPU seconds |",
            "| --- | --- |",
            f"| a step from the cache | {cached:.4f} |",
            f"| a step that renders its views | {rendered:.4f} |",
            f"| a frame of the cache | {run['a_frame']:.4f} |",
            f"| the cache has paid for itself after | {run['steps']:,.0f} steps |",
        ]
    )


def training(run: dict[str, Any]) -> str:
    """Images a second of each training, and the share of the floor."""
    rows = ["| training | precision | processes | images a second | of the floor |", "|" + " --- |" * 5]
    for result in run["results"]:
        processes = result["processes"] or "plain loop"
        share = f"{result['share']:.2f}" if result["share"] else ""
        rate = f"{result['images_per_second']:.1f}"
        rows.append(f"| {result['network']} | {result['precision']} | {processes} | {rate} | {share} |")
    return "\n".join(rows)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "inference": markdown,
    "engine": engine,
    "reading": reading,
    "worth": worth,
    "training": training,
}


def table(run: dict[str, Any]) -> str:
    """The table of a benchmark's JSON, and a sentence on what its numbers belong to."""
    return f"{TABLES[run['benchmark']](run)}\n\n{origin(run['machine'])}"


if __name__ == "__main__":
    for file in sys.argv[1:]:
        print(table(json.loads(Path(file).read_text())))
