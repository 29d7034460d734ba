"""What is missing for the current params, where it comes from, and what the run would cost."""

import ctypes
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from pipeline.config.params import Params
from pipeline.core.costs import COSTS

PNG_BYTES = 1.5  # per RGB pixel of a photo, roughly
SYSTEM_LIBRARIES = {
    "libGL.so.1": "libgl1",
    "libgthread-2.0.so.0": "libglib2.0-0",
}  # what cv2 links against: Debian and Ubuntu packages
IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
VIDEOS = {".mp4", ".mov", ".mkv", ".avi", ".webm"}
FLAME_FILES = {
    "flame_addition_info_new_smallface.npy": "vertex groups",
    "simplify_baricentric2.npy": "simplified mesh",
    "landmark_embedding_with_eyes.npy": "70 landmarks",
}


@dataclass(frozen=True)
class Diagnosis:
    """One line of the report. `state` is "ok", "missing" (the run would fail) or "note"."""

    state: str
    what: str
    detail: str


def examine(params: Params) -> list[Diagnosis]:
    """Everything that the graph needs at `params`, and the costs as far as they are known."""
    return [
        *_system(params),
        *_flame(params),
        *_official(params),
        *_folders(params),
        *_costs(params),
    ]


def _system(params: Params) -> list[Diagnosis]:
    findings = []
    for library, package in SYSTEM_LIBRARIES.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            findings.append(
                Diagnosis("missing", library, f"OpenCV needs it. Debian or Ubuntu: apt-get install {package}")
            )
    needed = 16 if params.networks.image > 128 else 8
    free = psutil.virtual_memory().available / 2**30
    findings.append(
        Diagnosis(
            "ok" if free >= needed else "note",
            "memory",
            f"{free:.1f} GiB free; this scale is meant for {needed} GiB",
        )
    )
    if torch.cuda.is_available():
        findings.append(Diagnosis("ok", "GPU", torch.cuda.get_device_name()))
    else:
        state = "note" if params.networks.image > 128 else "ok"
        findings.append(
            Diagnosis(state, "GPU", "none; everything runs on the CPU, but paper scale would take years")
        )
    return findings


def _flame(params: Params) -> list[Diagnosis]:
    if params.flame.model == "standin":
        return [Diagnosis("ok", "head model", "the built-in stand-in (not FLAME)")]
    model = Path(params.flame.model)
    findings = [
        _file(
            model, "FLAME 2020", "flame.is.tue.mpg.de, after registration; licence: non-commercial research"
        )
    ]
    if model.suffix != ".safetensors":  # an imported one has everything in it
        for name, content in FLAME_FILES.items():
            findings.append(
                _file(
                    model.with_name(name),
                    f"FLAME {content}",
                    "github.com/YuDeng/Portrait-4D (FLAME side files)",
                )
            )
    if all(finding.state == "ok" for finding in findings):
        from pipeline.geometry import (
            head_model,
        )  # here and below: what most runs do not need takes seconds to import

        try:
            head_model.load(params.flame.model)
        except ValueError as error:
            findings.append(
                Diagnosis(
                    "missing", "head model", f"the files are there, but not what they should be: {error}"
                )
            )
    return findings


def _official(params: Params) -> list[Diagnosis]:
    if params.pretrain.source == "generated":
        return [Diagnosis("ok", "frozen networks", "small ones, trained by the stage pretrain")]
    from pipeline.networks.published import NEEDED, load_imported

    folder = Path(params.pretrain.official)
    findings = []
    for name, published in NEEDED.items():
        try:
            state, facts = load_imported(folder, name, params.networks)
        except ValueError as error:
            findings.append(Diagnosis("missing", name, str(error)))
            continue
        imported = facts["imported"]
        if not published.sha256:
            known = "no published hash is known to compare with"
        else:
            known = f"{'as' if imported['sha256'].startswith(published.sha256) else 'NOT as'} published: {published.sha256}..."
        what = f"{len(state)} tensors of the expected names and shapes, imported from {imported['file']}"
        findings.append(
            Diagnosis(
                "ok" if "NOT" not in known else "note", name, f"{what}, sha256 {imported['sha256']} ({known})"
            )
        )
    return findings


def _file(path: Path, what: str, source: str) -> Diagnosis:
    if not path.is_file():
        return Diagnosis(
            "missing", what, f"expected at {path}; from {source}; no published hash is known to compare with"
        )
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Diagnosis(
        "ok",
        what,
        f"{path}, {_bytes(path.stat().st_size)}, sha256 {digest} (no published hash is known to compare with)",
    )


def _folders(params: Params) -> list[Diagnosis]:
    if params.ingest.source == "generated":
        return [Diagnosis("ok", "input", "generated heads of people who do not exist; nothing to bring")]
    findings = []
    for key, kinds, source in (
        ("portraits", IMAGES, "FFHQ: github.com/NVlabs/ffhq-dataset, or your own pictures"),
        ("clips", VIDEOS, "VFHQ: liangbinxie.github.io/projects/vfhq, or your own videos"),
    ):
        folder = Path(getattr(params.ingest, key))
        if not folder.is_dir():
            findings.append(
                Diagnosis("missing", key, f"ingest.{key} names {folder}, which is no folder; {source}")
            )
            continue
        count = sum(path.suffix.lower() in kinds for path in folder.rglob("*"))
        findings.append(
            Diagnosis(
                "ok" if count else "missing",
                key,
                f"{count:,} files in {folder}" + ("" if count else f"; {source}"),
            )
        )
    return findings


def _costs(params: Params) -> list[Diagnosis]:
    ingest, pixels = params.ingest, params.networks.image**2
    if ingest.source == "generated" or params.scale == "paper":
        clips, portraits = (
            ingest.train_clips + ingest.validation_clips + ingest.test_clips,
            ingest.identities * ingest.photos,
        )
    else:
        clips, portraits = (
            _count(folder, kinds) for folder, kinds in ((ingest.clips, VIDEOS), (ingest.portraits, IMAGES))
        )
    frames = clips * ingest.frames
    heads = params.render_genhead
    parts = {
        "data/ingest": (portraits + frames) * pixels * PNG_BYTES,
        "data/genhead": heads.heads
        * (heads.views * pixels * PNG_BYTES + heads.points * 2 * (3 + params.networks.plane_channels)),
        "data/views": frames * (1 + params.render_views.views) * pixels * PNG_BYTES,
    }
    total = sum(parts.values())
    free = shutil.disk_usage(".").free
    return [
        Diagnosis(
            "ok",
            "work",
            f"up to {portraits:,} portraits, {clips:,} clips with {frames:,} frames, {frames * params.render_views.views:,} pseudo views, "
            f"{params.train_psi3d.images:,} + {params.train.images:,} training images",
        ),
        Diagnosis(
            "ok" if free > total else "missing",
            "disk",
            f"about {_bytes(total)} ({', '.join(f'{name} {_bytes(size)}' for name, size in parts.items())}); {_bytes(free)} free",
        ),
        Diagnosis("ok", "time", _time(params)),
    ]


def _time(params: Params) -> str:
    """Minutes of every stage as they were measured here; nothing is guessed."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(Path(COSTS).glob("*.json"))}
    records = {name: record for name, record in records.items() if record["scale"] == params.scale}
    if not records:
        return f"not measured here at scale {params.scale}; GPU hours not measured"
    stages = ", ".join(f"{name} {record['seconds'] / 60:.1f}" for name, record in records.items())
    total, peak = (
        sum(record["seconds"] for record in records.values()) / 60,
        max(record["peak_mb"] for record in records.values()),
    )
    return f"last runs here at scale {params.scale}: {total:.1f} minutes ({stages}), peak {peak / 1024:.1f} GiB; GPU hours not measured"


def _count(folder: str, kinds: set[str]) -> int:
    return sum(path.suffix.lower() in kinds for path in Path(folder).rglob("*"))


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
