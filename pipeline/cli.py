"""The command line `psi4d`."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.config.params import load_params
from pipeline.config.scales import SCALES, scale_params, scale_text
from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes
from pipeline.core.paths import BOARD, MOTION, OFFICIAL, PLOTS, PSI

PARAMS = Path("params.yaml")
PSI_WEIGHTS, MOTION_WEIGHTS = PSI / "psi.safetensors", MOTION / "motion.safetensors"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="One-shot 4D head avatars: the tools around the graph.",
)


@app.callback()
def psi4d() -> None:
    """Run from the folder of the project, beside dvc.yaml and params.yaml."""
    if not Path("dvc.yaml").exists():
        raise UserError("there is no dvc.yaml here; run psi4d in the folder of the project.")


@app.command()
def scale(name: Annotated[str, typer.Argument(help=", ".join(SCALES))]) -> None:
    """Write params.yaml for another scale; one with changes of your own is kept as params.yaml.bak."""
    text = scale_text(name)
    # A preset can be had again at any time, values of a person's own cannot.
    if PARAMS.exists() and not _is_preset():
        write_bytes(f"{PARAMS}.bak", PARAMS.read_bytes())
        typer.echo(f"the old params.yaml had values of its own; it is now {PARAMS}.bak")
    write_bytes(PARAMS, text.encode())
    typer.echo(f"params.yaml is at scale {name}; `psi4d doctor` says what that needs, `dvc repro` runs it")


@app.command()
def doctor() -> None:
    """Say what is missing for the current params, where it comes from and what the run would cost."""
    # Not at the top, as it imports torch, and `psi4d scale` should answer at once. So it is in other
    # commands.
    from pipeline.doctor import examine

    findings = examine(load_params(PARAMS))
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        typer.echo(f"{finding.state:7}  {finding.what:{width}}  {finding.detail}")
    # The status tells a script, as DVC would, that the run cannot come to its end.
    missing = sum(finding.state == "missing" for finding in findings)
    if missing:
        raise UserError(f"{missing} of the things above are missing; `dvc repro` would stop there.")


FixtureFolder = Annotated[Path, typer.Argument(metavar="DIR", help="folder of fixtures (*.npz)")]
Salt = Annotated[
    str,
    typer.Option(
        metavar="TEXT", help="text in front of every key of the number rule, for fixtures of other numbers"
    ),
]


@app.command()
def parity(folder: FixtureFolder, salt: Salt = "") -> None:
    """Compare the networks at paper size with the fixtures of the official ones.

    Takes a minute or two, and 3 GB of memory.
    """
    from pipeline.parity.check import check
    from pipeline.parity.numbers import NumberRule

    # Each line is shown at once: it takes a while to build the next network.
    counts: Counter[str] = Counter()
    for line in check(folder, NumberRule(salt)):
        typer.echo(line)
        counts[line.verdict] += 1
    bad = counts["fail"] + counts["unknown"]
    if bad:
        raise UserError(f"{bad} of {bad + counts['pass']} comparisons above failed or could not be made.")
    skipped = f"; {counts['skipped']} were not compared, for lack of a file" if counts["skipped"] else ""
    typer.echo(f"all {counts['pass']} arrays agree{skipped}")


ADDRESS = "data/views, data/genhead, data/ingest, or the http:// or s3:// address of views"
CacheAddress = Annotated[str, typer.Argument(metavar="DIR", help=ADDRESS)]
ClipName = Annotated[str | None, typer.Option(help="only this clip, or the sample with this key")]
FrameIndex = Annotated[int | None, typer.Option(help="only the frame with this index")]
SheetFile = Annotated[Path | None, typer.Option(metavar="OUT.png", help="write a contact sheet of frames")]
FilmFile = Annotated[Path | None, typer.Option(metavar="OUT.mp4", help="write a film of the clip")]
PageFolder = Annotated[Path | None, typer.Option(metavar="OUT", help="write a page to browse into this")]


@app.command()
def inspect(
    folder: CacheAddress,
    clip: ClipName = None,
    frame: FrameIndex = None,
    sheet: SheetFile = None,
    html: PageFolder = None,
    film: FilmFile = None,
) -> None:
    """Show what is in a cache: numbers, one sample, a contact sheet, a film, a page to browse."""
    from pipeline.caches.cache import Cache
    from pipeline.caches.film import write_film
    from pipeline.caches.inspect import frames_of, sample, summary
    from pipeline.caches.page import write_page
    from pipeline.caches.sheet import write_sheet
    from pipeline.core.bad_frames import find_bad_frames
    from pipeline.core.paths import MARKED, in_project

    cache = Cache(folder)
    entries = cache.chosen(clip, frame)
    if sheet:
        shown = write_sheet(cache, entries, sheet)
        typer.echo(f"{shown} of {len(entries):,} frames are now in {sheet}")
    if html:
        page = write_page(cache, entries, html, find_bad_frames(in_project(MARKED)))
        typer.echo(f"{len(entries):,} frames are now in {page}")
    if film:
        shown = write_film(cache, entries, film)
        typer.echo(f"{shown} frames are now in {film}")
    # A file was asked for, so the screen stays free of text.
    if sheet or html or film:
        return
    if clip is None and frame is None:
        typer.echo(summary(cache))
    elif len(entries) == 1:
        typer.echo(sample(cache, entries[0]))
    else:
        typer.echo(frames_of(cache, entries))


CacheFolder = Annotated[Path, typer.Argument(metavar="DIR", help="data/views, data/genhead or data/ingest")]
Repair = Annotated[bool, typer.Option("--repair", help="make what is broken again, and only that")]


@app.command()
def verify(folder: CacheFolder, repair: Repair = False) -> None:
    """Check a cache: checksums, fields, tables against shards, files.

    Status 1 and a line for everything that is wrong.
    """
    from pipeline.caches.verify import verify as look

    verdict = look(folder)
    for finding in verdict.findings:
        typer.echo(finding)
    # After a repair the whole cache is looked at again, as the repair of one file may show damage in another.
    if verdict.findings and repair:
        from pipeline.caches.repair import repair as mend

        for name in mend(load_params(PARAMS), folder, verdict):
            typer.echo(f"made again: {name}")
        verdict = look(folder)
    if verdict.findings:
        advice = f"`psi4d verify {folder} --repair` makes what is broken again."
        raise UserError(f"{folder} is not whole: {len(verdict.findings)} findings. {advice}")
    samples = sum(map(len, verdict.samples.values()))
    content = f"{samples:,} samples in {len(verdict.samples)} shards, {verdict.bytes:,} bytes"
    typer.echo(f"{folder} is whole: {content}")


@app.command()
def clean(
    yes: Annotated[bool, typer.Option("--yes", help="remove them")] = False,
    units: Annotated[bool, typer.Option("--units", help="finished units and known drivers, too")] = False,
) -> None:
    """List what runs left in scratch folders, or remove it.

    What the last run of each stage left stays, as the next one may go on from it. The units that it finished
    are links to the files of the result, which take no disk of their own.
    """
    from pipeline.core.readable import readable_bytes
    from pipeline.engine.scratch import finished_units, leftovers, remove

    found = leftovers()
    if units:
        found += finished_units()
    for leftover in found:
        state = "can go"
        if leftover.current:
            state = "kept: of the last run"
        elif yes:
            remove(leftover)
            state = "removed"
        typer.echo(f"{readable_bytes(leftover.bytes):>10}  {leftover.path}  {state}")
    older = [leftover for leftover in found if not leftover.current]
    size = readable_bytes(sum(leftover.bytes for leftover in older))
    if not older:
        typer.echo("there is nothing to remove")
    elif yes:
        typer.echo(f"{size} are free now")
    else:
        typer.echo(f"{len(older)} folders with {size} can go: `psi4d clean --yes`")


StageName = Annotated[str | None, typer.Argument(metavar="[STAGE]", help="only this one")]


@app.command()
def status(stage: StageName = None) -> None:
    """Say what each stage has done and has left, how fast it goes, and what went wrong last."""
    from pipeline.status import statuses

    for found in statuses(stage):
        for line in found.lines():
            typer.echo(line)


RetryStage = Annotated[str, typer.Argument(metavar="STAGE", help="ingest, render_genhead or render_views")]


@app.command()
def retry(stage: RetryStage) -> None:
    """Do again what a stage gave up or rejected, after a fix: says which units, and what to run then.

    All other units stay as they are, even if the code has changed.
    """
    from pipeline.retry import retry as prepare

    found = prepare(load_params(PARAMS), stage)
    for name, reason in found.again.items():
        typer.echo(f"again: {name}: {reason}")
    todo = len(found.again) + found.left
    if not todo:
        typer.echo(f"{stage} has given up nothing and rejected nothing")
        return
    left = f", {found.left} of them not done yet" if found.left else ""
    typer.echo(f"{todo} units to do{left}; {found.kept} stay as they are. Now run:")
    # DVC would skip a stage whose inputs are the same; the mark of its code and the manifest of the user's
    # files must not be old ones.
    typer.echo(f"dvc repro code inputs && dvc repro --force --single-item {stage} && dvc repro")


ScaleName = Annotated[str, typer.Option(help="sizes of the networks: " + ", ".join(SCALES))]
JsonFile = Annotated[Path | None, typer.Option(metavar="FILE", help="write the numbers there, too")]
Train = Annotated[bool, typer.Option("--train", help="the trainings, with the inputs of this project")]
Compile = Annotated[bool, typer.Option("--compile", help="the networks of the fast path by torch.compile")]


@app.command()
def bench(
    scale: ScaleName = "paper",
    json: JsonFile = None,
    compile: Compile = False,
    train: Train = False,
) -> None:
    """Time the fast path of Psi beside the reference path and the floor of this machine.

    Ten minutes and 9 GB of memory at paper size. With --train it is the trainings that are timed, at the
    scale of params.yaml: by one and by two processes, in float32 and bfloat16, beside a plain loop.
    """
    # Both are read when torch is loaded. For the first see stages/__init__.py. Without the large pages of the
    # second fresh memory costs more than filling it.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    compilers = (os.environ.get("CXX", "c++"), "g++", "clang++")
    if compile and not any(map(shutil.which, compilers)):
        advice = "Install g++, or leave --compile out."
        raise UserError(f"bench --compile: torch.compile needs a C++ compiler and found none. {advice}")
    from pipeline.core.files import write_json

    for line in _bench_lines(scale, compile, train):
        if isinstance(line, str):
            typer.echo(line)
        elif json:
            write_json(json, line)


def _bench_lines(scale: str, compiled: bool, train: bool) -> Iterator[str | dict[str, Any]]:
    """What the benchmark says, and its numbers."""
    # Only now, as the environment above counts when torch is loaded.
    if train:
        from pipeline.bench.training import bench_training

        return bench_training()
    from pipeline.bench.inference import bench as run

    return run(scale_params(scale).networks, compiled=compiled)


PUBLISHED = (
    "GenHead, Psi or Psi_3d (.pkl), motion_model.pth, backbone.pth, vgg16-397923af.pth, generic_model.pkl, "
    "Deep3D, Inception of FID, EMOCA's emotion network, SyncNet, ArcFace (.pth, .onnx), ResNet-34"
)
PublishedFile = Annotated[Path, typer.Argument(help=PUBLISHED)]
OutFolder = Annotated[Path, typer.Option(help="folder for the result")]


@app.command("import")
def import_(file: PublishedFile, out: OutFolder = OFFICIAL) -> None:
    """Turn a published checkpoint or FLAME into safetensors and JSON, without executing anything in it."""
    from pipeline.networks.import_weights import import_weights

    result = import_weights(file, out)
    tensors = f"{result.tensors} tensors with {result.values:,} numbers"
    typer.echo(f"{result.network}: {tensors}, now {result.path}")
    if result.dropped:
        listed = f"{result.path.with_suffix('.json')} lists them"
        typer.echo(f"left out: {len(result.dropped)} tensors that it does not need; {listed}")
    # Published networks are found by their names, a head model by its path in params.yaml.
    if result.network == "flame":
        typer.echo(f"set flame.model to {result.path} in params.yaml to use it")


Psi = Annotated[Path, typer.Option("--psi", metavar="FILE", help="weights of Psi, trained or imported")]
Motion = Annotated[Path, typer.Option("--motion", metavar="FILE", help="weights of the motion encoder")]
Photo = Annotated[Path, typer.Argument(metavar="PHOTO", help="a photo or a saved avatar")]
Size = Annotated[
    int, typer.Option(metavar="PIXELS", min=0, help="of a picture; 0: the networks', 256 at least")
]


SOURCES = "photos or avatars, then videos or numbered pictures; each may be a folder"
RELATIVE = "motion relative to this frame of the driver"
Files = Annotated[list[Path], typer.Argument(metavar="PHOTO... VIDEO...", help=SOURCES)]
Films = Annotated[Path | None, typer.Option("-o", "--out", help="OUT.mp4; a folder for several films")]
Beside = Annotated[bool, typer.Option("--beside", help="show source and driver next to the result")]
Camera = Annotated[str, typer.Option(help="driving, front or orbit")]
Relative = Annotated[str, typer.Option(metavar="first|neutral", help=RELATIVE)]
MEASURES = "write OUT.json and OUT.txt: steadiness, mouth, eyes, gaze, identity"
SMOOTHING = (
    "over how long the driver's place and size are smoothed; 0.12 where nothing is said, as in training"
)
Smooth = Annotated[float | None, typer.Option(metavar="SECONDS", min=0, max=10, help=SMOOTHING)]
STRENGTH = "how many times as far as the driver's the face moves; 0 keeps the photo's expression"
Strength = Annotated[float, typer.Option(metavar="TIMES", min=0, max=3, help=STRENGTH)]
Measure = Annotated[bool, typer.Option("--measure", help=MEASURES)]


@app.command()
def animate(
    files: Files,
    out: Films = None,
    beside: Beside = False,
    camera: Camera = "driving",
    size: Size = 0,
    relative: Relative = "",
    measure: Measure = False,
    smooth: Smooth = None,
    strength: Strength = 1.0,
    psi: Psi = PSI_WEIGHTS,
    motion: Motion = MOTION_WEIGHTS,
) -> None:
    """Move the head of a photo as the head of a video moves.

    The film has the video's frame rate, length and sound.
    """
    from pipeline.avatar.animate import animate_files
    from pipeline.avatar.animator import Weights
    from pipeline.avatar.film_maker import Look

    look = Look(camera, beside, size, relative, measure, smooth, strength)  # pyrefly: ignore[bad-argument-type]
    for line in animate_files(load_params(PARAMS), Weights(psi, motion), files, out, look):
        typer.echo(line)


@app.command()
def avatar(
    photo: Annotated[Path, typer.Argument(metavar="PHOTO")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="NAME.avatar")],
    psi: Psi = PSI_WEIGHTS,
    motion: Motion = MOTION_WEIGHTS,
) -> None:
    """Keep all that depends on a photo alone in a file, which the other commands take in its place."""
    from pipeline.avatar.animator import Weights
    from pipeline.avatar.saved import save
    from pipeline.avatar.studio import Studio

    studio = Studio(load_params(PARAMS), Weights(psi, motion))
    save(out, studio.avatar(photo), studio.animator, photo.name)
    typer.echo(f"the avatar of {photo} is now {out}")


Film = Annotated[Path, typer.Option("-o", "--out", metavar="OUT.mp4")]
Turn = Annotated[bool, typer.Option("--turn", help="all around; training has seen heads to 45 degrees")]


@app.command()
def orbit(
    photo: Photo,
    out: Film = Path("orbit.mp4"),
    turn: Turn = False,
    size: Size = 0,
    psi: Psi = PSI_WEIGHTS,
    motion: Motion = MOTION_WEIGHTS,
) -> None:
    """Show the head of a photo from other sides, without a driver: a film, and a sheet of stills."""
    from pipeline.avatar.animator import Weights
    from pipeline.avatar.orbit import orbit as go_around
    from pipeline.avatar.studio import Studio

    studio = Studio(load_params(PARAMS), Weights(psi, motion))
    sheet = go_around(studio.animator, studio.avatar(photo), out, "turn" if turn else "sway", size)
    typer.echo(f"the film is now {out}, stills are in {sheet}")


SURFACE = "raw density at the surface, 25 as published; else 0.55 of that seen from the front"
BACK = "skull: of the fitted head, as training has seen no back; density: what the network draws there"
MeshFile = Annotated[Path, typer.Option("-o", "--out", metavar="head.glb", help=".glb, .ply or .obj")]
Driver = Annotated[Path | None, typer.Option(metavar="VIDEO", help="whose motion the head has")]
DriverFrame = Annotated[int, typer.Option(min=0, help="of the video")]
GridSide = Annotated[int, typer.Option(min=16, max=512, help="points a side of the grid")]
Level = Annotated[float | None, typer.Option(help=SURFACE)]
BackOfHead = Annotated[str, typer.Option(metavar="skull|density", help=BACK)]


@app.command()
def mesh(
    photo: Photo,
    out: MeshFile,
    driving: Driver = None,
    frame: DriverFrame = 0,
    size: GridSide = 128,
    level: Level = None,
    back: BackOfHead = "skull",
    psi: Psi = PSI_WEIGHTS,
    motion: Motion = MOTION_WEIGHTS,
) -> None:
    """Write the head of a photo as a coloured mesh, in metres and upright."""
    from pipeline.avatar.animator import Weights
    from pipeline.avatar.mesh import mesh_of, write_mesh
    from pipeline.avatar.studio import Studio

    studio = Studio(load_params(PARAMS), Weights(psi, motion))
    head = mesh_of(studio, photo, driving, frame, size, level, back)  # pyrefly: ignore[bad-argument-type]
    write_mesh(out, head)
    closed = "watertight" if head.is_watertight else "with holes"
    typer.echo(f"{out}: {len(head.vertices):,} vertices, {len(head.faces):,} faces, {closed}")


@app.command()
def view(
    photo: Photo,
    driving: Annotated[Path | None, typer.Argument(metavar="VIDEO", help="whose motion the head has")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="of the page on this machine")] = 8080,
    psi: Psi = PSI_WEIGHTS,
    motion: Motion = MOTION_WEIGHTS,
) -> None:
    """Turn the head of a photo with the mouse, in a browser; needs the package viser."""
    from pipeline.avatar.animator import Weights
    from pipeline.avatar.studio import Studio
    from pipeline.avatar.view import HOST
    from pipeline.avatar.view import view as serve

    viewer = serve(Studio(load_params(PARAMS), Weights(psi, motion)), photo, driving, port)
    typer.echo(f"the head is at http://{HOST}:{port} until Ctrl-C")
    # This lasts until Ctrl-C.
    viewer.play()


@app.command()
def tensorboard(
    port: Annotated[int, typer.Option(min=1, max=65535, help="of the page on this machine")] = 6006,
) -> None:
    """Show the curves of the trainings in TensorBoard, also while they run; needs its package."""
    from pipeline.board import Board, follow, serve

    board = Board(PLOTS, BOARD)
    board.update()
    typer.echo(f"the curves are at {serve(BOARD, port)} until Ctrl-C")
    follow(board)


def _is_preset() -> bool:
    """Whether params.yaml says what one of the scales says."""
    try:
        params = load_params(PARAMS)
    except UserError:
        return False
    return any(params == scale_params(name) for name in SCALES)


def main() -> None:
    """Entry point: what a user can mend is one line on stderr and status 1."""
    # Anything else keeps its traceback, which is needed to mend the code.
    try:
        app()
    except UserError as error:
        sys.exit(f"psi4d: {error}")
    except KeyboardInterrupt:
        sys.exit("psi4d: stopped.")
