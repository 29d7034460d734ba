"""What is missing for the current params, where it comes from, and what the run would cost."""

import ctypes
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.config.disk import face_fields, frame_fields, head_fields
from pipeline.config.params import Params, Pretraining, Training
from pipeline.core.files import sha256
from pipeline.core.limits import cores, free_memory
from pipeline.core.paths import COSTS, HEADS, INGEST, VIEWS, in_project
from pipeline.core.readable import readable_bytes
from pipeline.ingest.files import PICTURE, Listing, find_clips, find_files

# What cv2 links against, and the packages of Debian and Ubuntu that have it.
SYSTEM_LIBRARIES = {"libGL.so.1": "libgl1", "libgthread-2.0.so.0": "libglib2.0-0"}
FFHQ = "FFHQ: github.com/NVlabs/ffhq-dataset (89 GB at 1024 pixels), or your own pictures"
VFHQ = "VFHQ: liangbinxie.github.io/projects/vfhq (its size is not known here), or your own videos"
FLAME = "flame.is.tue.mpg.de, after registration; licence: non-commercial research"
FLAME_SIDE = "github.com/YuDeng/Portrait-4D (FLAME side files)"
FLAME_FILES = {
    "flame_addition_info_new_smallface.npy": "vertex groups",
    "simplify_baricentric2.npy": "simplified mesh",
    "landmark_embedding_with_eyes.npy": "70 landmarks",
}
NO_HASH = "no published hash is known to compare with"
# Of a face: 478 landmarks, a label and the rest of its rows, as Parquet.
TABLE_BYTES = 4 * (3 * 478 + 437) + 200
SMALL = 128  # pixels: the sizes up to which a laptop does


@dataclass(frozen=True)
class Diagnosis:
    """One line of the report. `state` is "ok", "missing" (the run would fail) or "note"."""

    state: str
    what: str
    detail: str


def examine(params: Params) -> list[Diagnosis]:
    """Everything that the graph needs at `params`, and the costs as far as they are known."""
    return [
        *_libraries(),
        _memory(params),
        _cores(params),
        _gpu(params),
        *_flame(params),
        *_official(params),
        *_instruments(params),
        *_input(params),
        *_costs(params),
    ]


def _libraries() -> list[Diagnosis]:
    findings = []
    for library, package in SYSTEM_LIBRARIES.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            detail = f"OpenCV needs it. Debian or Ubuntu: apt-get install {package}"
            findings.append(Diagnosis("missing", library, detail))
    return findings


def _memory(params: Params) -> Diagnosis:
    needed = 8 if params.networks.image <= SMALL else 16
    free = free_memory() / 2**30
    state = "ok" if free >= needed else "note"
    return Diagnosis(state, "memory", f"{free:.1f} GiB free; this scale is meant for {needed} GiB")


def _cores(params: Params) -> Diagnosis:
    found, wanted = cores(), params.machine.workers
    state = "ok" if wanted <= found else "note"
    return Diagnosis(state, "cores", f"{found} that may be used, for machine.workers {wanted}")


def _gpu(params: Params) -> Diagnosis:
    if torch.cuda.is_available():
        return Diagnosis("ok", "GPU", torch.cuda.get_device_name())
    state = "ok" if params.networks.image <= SMALL else "note"
    detail = "none; everything runs on the CPU, but paper scale would take years"
    return Diagnosis(state, "GPU", detail)


def _flame(params: Params) -> list[Diagnosis]:
    if params.flame.model == "standin":
        return [Diagnosis("ok", "head model", "the built-in stand-in (not FLAME)")]
    model = in_project(params.flame.model)
    findings = [_file(model, "FLAME 2020", FLAME)]
    # An imported one has everything in it.
    if model.suffix != ".safetensors":
        for name, content in FLAME_FILES.items():
            findings.append(_file(model.with_name(name), f"FLAME {content}", FLAME_SIDE))
    if any(finding.state != "ok" for finding in findings):
        return findings
    # Here, as in _official: most runs do not need what takes seconds to import.
    from pipeline.geometry import head_model

    try:
        head_model.load(params.flame.model)
    except ValueError as error:
        detail = f"the files are there, but not what they should be: {error}"
        findings.append(Diagnosis("missing", "head model", detail))
    return findings


def _official(params: Params) -> list[Diagnosis]:
    if params.pretrain.source == "generated":
        return [Diagnosis("ok", "frozen networks", "small ones, trained by the stage pretrain")]
    from pipeline.networks.published import NEEDED, SYNTHESIZERS, load_imported

    wanted = dict(NEEDED)
    # The published Psi_3d has learnt from GenHead already.
    if params.train_psi3d.source == "official":
        del wanted["genhead"]
    for name in ("psi3d", "psi"):
        section = getattr(params, SYNTHESIZERS[name].item)
        if "official" in (section.source, section.init):
            wanted[name] = SYNTHESIZERS[name]
    findings = []
    for name, published in wanted.items():
        sizes = params.networks.driven_by(params.train.motion) if name == "psi" else params.networks
        try:
            state, facts = load_imported(Path(params.pretrain.official), name, sizes)
        except ValueError as error:
            findings.append(Diagnosis("missing", name, str(error)))
            continue
        # Another hash than the published one is a note alone: it may be another release of the same network.
        file, digest = facts["imported"]["file"], facts["imported"]["sha256"]
        same = digest.startswith(published.sha256)
        verdict = f"{'as' if same else 'NOT as'} published: {published.sha256}..."
        tensors = f"{len(state)} tensors of the expected names and shapes, imported from {file}"
        detail = f"{tensors}, sha256 {digest} ({verdict if published.sha256 else NO_HASH})"
        findings.append(Diagnosis("ok" if same else "note", name, detail))
    return findings


def _instruments(params: Params) -> list[Diagnosis]:
    """The published instruments; without one a table has the number of our own small network, or none."""
    from pipeline.networks.instruments import INSTRUMENTS, described, load_instrument, missing
    from pipeline.networks.recognition_file import recognition_path

    folder = Path(params.pretrain.official)
    findings, absent = [], []
    for name in INSTRUMENTS:
        try:
            loaded = load_instrument(folder, name)
        except ValueError as error:
            findings.append(Diagnosis("missing", name, str(error)))
            continue
        if loaded is not None:
            findings.append(Diagnosis("ok", name, described(loaded.facts)))
        elif name == "arcface" and recognition_path(folder).is_file():
            findings.append(Diagnosis("ok", name, str(recognition_path(folder))))
        else:
            absent.append(name)
    # At small scales their numbers say little, so that one line is enough.
    if params.pretrain.source == "official":
        for name in absent:
            # A training that starts from it cannot do without; a measurement can.
            needed = name == "resnet34" and params.train_psi3d.init == "imagenet"
            findings.append(Diagnosis("missing" if needed else "note", name, missing(name, folder)))
        return findings
    if absent:
        detail = f"our own small networks measure; the published ones are not imported: {', '.join(absent)}"
        findings.append(Diagnosis("ok", "instruments", detail))
    return findings


def _file(path: Path, what: str, source: str) -> Diagnosis:
    if not path.is_file():
        return Diagnosis("missing", what, f"expected at {path}; from {source}; {NO_HASH}")
    size = readable_bytes(path.stat().st_size)
    return Diagnosis("ok", what, f"{path}, {size}, sha256 {sha256(path)} ({NO_HASH})")


def _input(params: Params) -> list[Diagnosis]:
    settings = params.ingest
    if settings.source == "generated":
        return [Diagnosis("ok", "input", "generated heads of people who do not exist; nothing to bring")]
    return [
        _folder("portraits", in_project(settings.portraits), FFHQ),
        _folder("clips", in_project(settings.clips), VFHQ),
    ]


def _folder(key: str, folder: Path, source: str) -> Diagnosis:
    if not folder.is_dir():
        return Diagnosis("missing", key, f"ingest.{key} names {folder}, which is no folder; {source}")
    listing = _listing(key, folder)
    count, others = len(listing.files), len(listing.passed_over)
    more = f", {others:,} passed over" if others else ""
    if not count:
        return Diagnosis("missing", key, f"0 files in {folder}{more}; {source}")
    return Diagnosis("ok", key, f"{count:,} files in {folder}{more}")


def _listing(key: str, folder: str | Path) -> Listing:
    """What the stage ingest would read."""
    # By its own functions, or the two could count differently.
    return find_clips(folder) if key == "clips" else find_files(folder, PICTURE)


def _costs(params: Params) -> list[Diagnosis]:
    settings = params.ingest
    # The files of the paper scale are seldom on the machine that plans it.
    if settings.source == "generated" or params.scale == "paper":
        clips = settings.train_clips + settings.validation_clips + settings.test_clips
        train_clips = settings.train_clips
        portraits = settings.identities * settings.photos
    else:
        clips = len(_listing("clips", in_project(settings.clips)).files)
        train_clips = round(clips * (1 - settings.validation_share - settings.test_share))
        portraits = len(_listing("portraits", in_project(settings.portraits)).files)
    frames = clips * settings.frames
    # Of a training clip some frames may be enough.
    section = params.render_views
    trained_on = train_clips * min(section.frames or settings.frames, settings.frames)
    cached = trained_on + (clips - train_clips) * settings.frames
    views = cached * section.views
    images = f"{_seen(params.train_psi3d):,} + {_seen(params.train):,} training images"
    data = f"up to {portraits:,} portraits, {clips:,} clips with {frames:,} frames, {views:,} pseudo views"
    # A pseudo view is as good as new where few samples see it; published ones are drawn anew each time.
    told = 1 - params.train.substitute_p + 1 - params.train.substitute_q
    again = told * _seen(params.train) / max(trained_on * section.views, 1)
    return [
        Diagnosis("ok", "work", f"{data}, {images}"),
        Diagnosis("ok", "  pseudo views", f"each is used {again:.1f} times, less with more of them"),
        *_disk(params, portraits, frames, cached),
        *_hours(params, portraits, frames, cached),
        Diagnosis("ok", "time", _time(params)),
    ]


def _disk(
    params: Params,
    portraits: int,
    frames: int,
    cached: int,
) -> list[Diagnosis]:
    """All that the graph writes, and of the caches, which are nearly all of it, what a field takes.

    `cached` frames have pseudo views.
    """
    caches = {
        INGEST: (portraits + frames, "faces", face_fields(params)),
        HEADS: (_heads(params), "heads", head_fields(params)),
        VIEWS: (cached, "frames", frame_fields(params)),
    }
    parts, findings = {}, []
    for path, (count, noun, fields) in caches.items():
        parts[path.as_posix()] = count * sum(fields.values())
        listed = ", ".join(f"{name} {readable_bytes(size)}" for name, size in fields.items())
        findings.append(Diagnosis("ok", f"  {path.as_posix()}", f"{count:,} {noun} of {listed}"))
    parts["tables"] = (portraits + frames) * TABLE_BYTES
    total, free = sum(parts.values()), shutil.disk_usage(".").free
    listed = ", ".join(f"{name} {readable_bytes(size)}" for name, size in parts.items())
    detail = f"about {readable_bytes(total)} ({listed}); {readable_bytes(free)} free"
    return [Diagnosis("ok" if free > total else "missing", "disk", detail), *findings]


def _hours(
    params: Params,
    portraits: int,
    frames: int,
    cached: int,
) -> list[Diagnosis]:
    """What each stage has to do, in hours of one worker that does one item a second.

    Rates of this machine stand beside it where a stage has run at this scale. Others are not guessed: hours
    are those numbers over the rate.
    """
    if params.networks.image <= SMALL:
        return []
    generated = params.pretrain.source == "generated"
    views, heads = params.render_views.views, _heads(params)
    work = {
        "ingest": (portraits + frames, "faces", "core"),
        "fit_flame": (portraits + frames, "faces", "core"),
        "pretrain genhead": (_images(params.pretrain.genhead) if generated else 0, "images", "GPU"),
        "pretrain motion": (_images(params.pretrain.motion) if generated else 0, "images", "GPU"),
        "pretrain perception": (_images(params.pretrain.perception), "images", "GPU"),
        "render_genhead": (heads * params.render_genhead.views, "images", "GPU"),
        "train_psi3d": (_seen(params.train_psi3d), "images", "GPU"),
        "render_views": (cached * (1 + views), "images", "GPU"),
        "train": (_seen(params.train), "images", "GPU"),
        "evaluate": (_drawn(params), "images", "GPU"),
    }
    findings = []
    for stage, (count, noun, unit) in work.items():
        if count:
            hours = f"{count / 3600:,.0f} hours of a {unit} at 1 a second"
            findings.append(Diagnosis("ok", f"  {stage}", f"{count:,} {noun}: {hours}"))
    return findings


def _drawn(params: Params) -> int:
    """The pictures that evaluate draws at most: for Cons., and of each pair by Psi (twice) and Psi_3d."""
    section, settings = params.evaluate, params.ingest
    clips = section.clips or getattr(settings, f"{section.split}_clips")
    pairs = clips * min(section.self_frames, settings.frames - 1) + section.cross_pairs
    return 3 * pairs + clips * section.frontal_drivers


def _heads(params: Params) -> int:
    """How many synthetic heads are rendered: none where Psi_3d is the published one."""
    return 0 if params.train_psi3d.source == "official" else params.render_genhead.heads


def _seen(section: Training) -> int:
    """The images that a training sees."""
    return 0 if section.source == "official" else section.images


def _images(section: Pretraining) -> int:
    return section.steps * section.batch


def _time(params: Params) -> str:
    """Minutes of every stage as they were measured here; nothing is guessed."""
    minutes, peak = {}, 0.0
    for path in sorted(COSTS.glob("*.json")):
        record: dict[str, Any] = json.loads(path.read_text())
        if record["scale"] == params.scale:
            minutes[path.stem] = record["seconds"] / 60
            peak = max(peak, record["peak_mb"] / 1024)
    if not minutes:
        return f"not measured here at scale {params.scale}; GPU hours not measured"
    stages = ", ".join(f"{name} {time:.1f}" for name, time in minutes.items())
    total = f"{sum(minutes.values()):.1f} minutes ({stages}), peak {peak:.1f} GiB"
    return f"last runs here at scale {params.scale}: {total}; GPU hours not measured"
