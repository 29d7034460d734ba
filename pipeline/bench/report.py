"""What `psi4d bench` says of its numbers: lines for the terminal, and Markdown from the JSON of a run."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.bench.clock import CLOCKS, Seconds, total

CLOCK_HEADER = f"{'ref s':>8} {'fast s':>8} {'ratio':>7} {'/floor':>6} {'ceil.':>6}"
LAST_HEADER = f"{'ref GF':>7} {'GFLOP':>7} {'ref MB':>6} {'MB':>6} {'PSNR':>6} {'colours':>7}"
HEADER = (
    f"{'':22}       {'on the wall':>39}  {'work / threads':>39}\n"
    f"{'case':22} type  {CLOCK_HEADER}  {CLOCK_HEADER}  {LAST_HEADER}"
)
README_CASES = {
    "full frame": "full frame",
    "source cached": "source cached",
    "Psi_3d, 8 views": "8 views of one frame by Psi_3d",
}


@dataclass(frozen=True)
class Result:
    """One case and type.

    Seconds by part, on the clocks of `Seconds`; the reference's are those of single passes, one a picture.
    """

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


def rate_lines(rates: dict[str, dict[str, Any]], threads: int) -> Iterator[str]:
    """The rates of the units, by type and clock."""
    yield f"threads {threads}; 10^9 a second on the wall (work / threads):"
    for name, by_clock in rates.items():
        walls = asdict(by_clock["wall"])
        works = asdict(by_clock["work"])
        pairs = []
        for unit, wall in walls.items():
            work = works[unit]
            pairs.append(f"{_unit(unit)} {wall:.3g} ({work:.3g})")
        yield f"{name}  {', '.join(pairs)}"


def floor_lines(counts: dict[str, dict[str, int]], floors: dict[str, dict[str, Seconds]]) -> Iterator[str]:
    """The floor of each part of one picture, by type, and the operations that make it."""
    for part, units in counts.items():
        # Most parts have no look-ups, and some no attention.
        amounts = []
        for unit, amount in units.items():
            if amount:
                amounts.append(f"{_unit(unit)} {amount / 1e9:.3g}")
        times = []
        for name, parts in floors.items():
            seconds = parts[part]
            times.append(f"{name} {seconds.wall:.3f} s ({seconds.work:.3f})")
        yield f"floor of {part:16} {', '.join(times)}; 10^9 of {', '.join(amounts)}"


def result_line(result: Result) -> str:
    """A line of the table under HEADER."""
    columns = [f"{result.case:22} {result.dtype}"]
    columns += [_clock_columns(result, clock) for clock in CLOCKS]
    last = [
        f"{result.reference_gflop:7.0f}",
        f"{result.gflop:7.0f}",
        _mb(result.reference_peak_mb),
        _mb(result.peak_mb),
        f"{result.psnr:6.1f}",
        f"{100 * result.colours:5.0f} %",
    ]
    columns.append(" ".join(last))
    return "  ".join(columns)


def _clock_columns(result: Result, clock: str) -> str:
    """The columns of CLOCK_HEADER by one clock."""
    reference = getattr(result.reference, clock)
    all_parts, all_floors = total(result.parts), total(result.floor)
    own = getattr(all_parts, clock)
    least = getattr(all_floors, clock)
    ceiling = getattr(result.ceiling, clock)
    rate = result.gflop / own
    columns = [
        f"{reference:8.2f}",
        f"{own:8.2f}",
        f"{reference / own:6.1f}x",
        f"{own / least:6.2f}",
        f"{100 * rate / ceiling:4.0f} %",
    ]
    return " ".join(columns)


def part_line(result: Result) -> str:
    """The parts of a case beside their floors; in brackets by the other clock."""
    parts = []
    for part, own in result.parts.items():
        least = result.floor[part]
        walls = f"{part} {own.wall:.3f} s, floor {least.wall:.3f}"
        parts.append(f"{walls} ({own.work:.3f}, {least.work:.3f})")
    return "    " + ", ".join(parts)


def markdown(run: dict[str, Any]) -> str:
    """The README's table of inference from the JSON of a run: seconds on the wall.

    A ratio is that to the plain path in float32.
    """
    by_case = {(row["case"], row["dtype"]): row for row in run["results"]}
    rows = [
        "| | plain, fp32 | fast, fp32 | fast, bf16 |",
        "| --- | --- | --- | --- |",
    ]
    for case, title in README_CASES.items():
        exact = by_case[case, "fp32"]
        half = by_case[case, "bf16"]
        # What a reader of the paper would run: plain PyTorch in single precision.
        plain = exact["reference"]["wall"]
        cells = [
            title,
            _seconds(plain),
            _beside(plain, exact),
            _beside(plain, half),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    exact = by_case["full frame", "fp32"]["psnr"]
    half = by_case["full frame", "bf16"]["psnr"]
    rows.append(f"| PSNR to the plain one in fp32 | | {exact:.0f} dB | {half:.0f} dB |")
    return "\n".join(rows)


def _beside(plain: float, result: dict[str, Any]) -> str:
    """The seconds of a case by the fast path, and how many times longer the plain one takes."""
    seconds = sum(part["wall"] for part in result["parts"].values())
    return f"{_seconds(seconds)} ({plain / seconds:.1f}x)"


def origin(machine: dict[str, Any]) -> str:
    """A sentence on what numbers belong to."""
    commit = machine["commit"] or "an unknown commit"
    return f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, commit {commit}."


def _seconds(value: float) -> str:
    # Runs on one machine differ by some per cent: two or three digits say all there is to know.
    if value < 1:
        return f"{value:.2g}"
    if value < 100:
        return f"{value:.1f}"
    return f"{value:.0f}"


def _unit(name: str) -> str:
    return name.replace("_", "-")


def _mb(value: float | None) -> str:
    text = "-" if value is None else round(value)
    return f"{text:>6}"
