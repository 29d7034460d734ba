"""`psi4d import`: official checkpoints and FLAME into safetensors plus JSON (facts 10).

Nothing that is in these files is executed. What a file is follows from the names of its tensors. Every name
and shape is compared with our own network before a number is read.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.adversary.discriminator import Discriminator
from model.foreign.checkpoint_file import (
    CheckpointFile,
    class_and_attributes,
    is_tensor,
    module_tensors,
    shape_of,
)
from model.foreign.pickled_arrays import real_value
from model.foreign.safe_pickle import Record
from model.foreign.safetensors_file import SafetensorsFile, is_safetensors
from model.head.flame_file import ADDITIONS, EMBEDDING, SIMPLIFIED, head_tensors, read_flame
from model.judges.trunk import PublishedTrunk
from model.psi.network import Psi
from model.sizes import Sizes
from pipeline.core.errors import UserError
from pipeline.core.files import sha256
from pipeline.core.imported import DISCRIMINATOR
from pipeline.core.progress import say
from pipeline.networks.instruments import (
    COUNTER,
    INSTRUMENTS,
    instrument_path,
    network_of,
    with_counters,
)
from pipeline.networks.published import NEEDED, expected_state, facts_of, weights_path
from pipeline.networks.recognition_file import import_recognition, is_onnx
from pipeline.networks.weights import save_weights

TAKEN = "G_ema"  # the moving average, which the official programs use, too
# FLAME's data, under FLAME's licence, and a statistic of the training set.
DROPPED = ("deformer.", "dataset_label_std")
LISTED = 500  # problems that a message lists
DESCRIBED, DEEPEST = 1000, 20  # values of a file's own description that are kept, and how deep they may lie
DEEPER = 2  # levels below the top at which tensors are looked for
PUBLISHED = Sizes()
Foreign = CheckpointFile | SafetensorsFile
KNOWN = (
    "GenHead, Psi, Psi_3d, Portrait4D, motion_model.pth, backbone.pth, VGG16, FLAME's generic_model.pkl, "
    "Deep3D, Inception of FID, EMOCA's emotion network, SyncNet, insightface's ArcFace, ResNet-34"
)


@dataclass(frozen=True)
class Imported:
    """What an import wrote."""

    path: Path
    network: str
    tensors: int
    values: int
    dropped: list[str]


@dataclass(frozen=True)
class _Kind:
    """How a network is recognised and what of a file belongs to it."""

    mark: str  # the name of a tensor that no other kind has
    # Beginnings of names that are left out; "" is any that the network does not have.
    spare: tuple[str, ...] = ()
    ones: bool | None = None  # the only value of the init argument `use_ws_ones` that our network knows


PSI, LPIPS = "psi", "trunk"
KINDS = {
    PSI: _Kind("encoder_canonical.proj_y.weight", DROPPED, False),
    "genhead": _Kind("backbone.mapping.embed.weight", DROPPED, True),
    # Its own program ignores what it does not know as well.
    "motion": _Kind("model.conv6.weight", ("",)),
    "identity": _Kind("layer1.0.prelu.weight"),
    LPIPS: _Kind("features.0.weight", ("classifier.",)),
}
# Instruments first: deeper networks of face recognition have the mark of the loss's, too.
MARKS = {name: own.mark for name, own in INSTRUMENTS.items()} | {
    name: kind.mark for name, kind in KINDS.items()
}


def import_weights(
    path: Path,
    out: Path,
    sizes: Sizes = PUBLISHED,
) -> Imported:
    """Write what is in `path` to the folder `out`; `sizes` are those that the networks must have.

    Raises UserError that says what the file is not: readable, of a known network, or complete, with all
    missing, extra, mis-shaped and unreadable tensors at once.
    """
    try:
        # FLAME's side files are no checkpoints, but users try them.
        _refuse_array_file(path)
        if is_onnx(path):
            target, tensors, values = import_recognition(path, out)
            return Imported(target, path.stem, tensors, values, [])
        file = SafetensorsFile(path) if is_safetensors(path) else CheckpointFile(path)
        if isinstance(file.content, dict) and "v_template" in file.content:
            return _import_flame(path, out)
        most: dict[str, Any] = {}
        for told, nodes in _states(file):
            if found := recognised(nodes):
                name, prefix = found
                own = {
                    key.removeprefix(prefix): node for key, node in nodes.items() if key.startswith(prefix)
                }
                told |= {"prefix": prefix}
                if name in INSTRUMENTS:
                    return _import_instrument(file, name, own, told, out)
                imported = _import_network(file, name, own, told, out, sizes)
                if name == PSI:
                    _import_discriminator(file, imported.path, sizes)
                return imported
            most = max(most, nodes, key=len)
        raise ValueError(f"{path} is none of {KNOWN}; it has {len(most)} tensors{_some(most)}")
    except ValueError as error:
        raise UserError(f"nothing was imported. {error}") from error
    except OSError as error:
        raise UserError(f"nothing was imported. {error.filename or path}: {error.strerror}") from error


def _refuse_array_file(path: Path) -> None:
    with open(path, "rb") as file:
        if file.read(6) == b"\x93NUMPY":
            names = f"{ADDITIONS[0]}, {SIMPLIFIED} and {EMBEDDING}"
            beside = f"Put FLAME's side files ({names}) beside generic_model.pkl and import that"
            raise ValueError(f"{path} is an array file. {beside}")


def _import_flame(path: Path, out: Path) -> Imported:
    head = read_flame(path)
    side_files = [path.with_name(name) for name in (*ADDITIONS, SIMPLIFIED, EMBEDDING)]
    hashes = {file.name: sha256(file) for file in (path, *side_files) if file.is_file()}
    target = out / "flame.safetensors"
    origin = {
        "imported": {"sha256": hashes},
        "licence": "FLAME's: derived files may not be passed on",
    }
    tensors, facts = head_tensors(head)
    written = save_weights(target, tensors, origin | facts)
    return Imported(target, "flame", written["tensors"], written["values"], [])


def _states(file: Foreign) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The state dicts in a file: what it says of each, and its tensors by name.

    The moving average of the published programs comes first, then what others save: the tensors themselves,
    or dicts and modules of them one or two levels deeper.
    """
    content = file.content
    if isinstance(content, dict) and isinstance(content.get(TAKEN), Record):
        yield _average(file, content)
        return
    todo = [("", content)]
    while todo:
        entry, found = todo.pop(0)
        told = {"entry": entry} if entry else {}
        if isinstance(found, Record):
            yield told | {"class": class_and_attributes(found)[0]}, _module(file, found)
        if not isinstance(found, dict):
            continue
        named = {name: node for name, node in found.items() if isinstance(name, str)}
        tensors = {name: node for name, node in named.items() if is_tensor(node)}
        if tensors:
            yield told, tensors
        if entry.count(".") < DEEPER:
            inside = [(f"{entry}{name}.", node) for name, node in named.items() if name not in tensors]
            todo += inside[:DESCRIBED]


def recognised(nodes: Mapping[str, Any]) -> tuple[str, str] | None:
    """The kind of network with these tensors, and what is written in front of all their names."""
    for name, mark in MARKS.items():
        if mark in nodes:
            return name, ""
    # Wrappers for several GPUs write "module.", others the name of the attribute that the network is.
    for name, mark in MARKS.items():
        for key in nodes:
            if key.endswith(f".{mark}"):
                return name, key.removesuffix(mark)
    return None


def _module(file: Foreign, module: Record) -> dict[str, Any]:
    try:
        return module_tensors(module)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error


def _average(file: Foreign, content: dict) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a published file says of its network, and the tensors of its moving average."""
    module = content[TAKEN]
    name, attributes = class_and_attributes(module)
    # What a file says of itself may be of any size; a few of its values are enough to know it again.
    left = [DESCRIBED]
    others = [str(key)[:100] for key in content if key not in (TAKEN, "training_set_kwargs")]
    told = {
        "class": name,
        "entry": TAKEN,
        "init_args": _plain(attributes.get("_init_args"), left),
        "init_kwargs": _plain(attributes.get("_init_kwargs"), left),
        "training_set_kwargs": _plain(content.get("training_set_kwargs"), left),
        "other_entries": others[:100],
    }
    return told, _module(file, module)


def _import_network(
    file: Foreign,
    name: str,
    nodes: dict[str, Any],
    told: dict[str, Any],
    out: Path,
    sizes: Sizes,
) -> Imported:
    # A switch of the official network that leaves no trace in its tensors.
    kind = KINDS[name]
    if kind.ones is not None and (not kind.ones) in _found(told, "use_ws_ones"):
        made = f"{file.path} was made with use_ws_ones {not kind.ones}"
        raise ValueError(f"{made}, which would give other pictures here")
    if name == PSI:
        facts, wanted = _psi(nodes, sizes)
    else:
        facts = facts_of(name, sizes)
        wanted = expected_state(lambda: NEEDED[name].build(sizes))
    names = {_published_name(key): key for key in wanted if not _comes_with_lpips(key)}
    spare = _spare(nodes, names, kind.spare)
    state = _checked_state(file, name, nodes, names, wanted, spare)

    # Psi and Psi_3d have the same layers; the graph looks for each under its own name.
    if name == PSI and not _is_driven(state):
        facts = {"network": "psi3d", "sizes": facts["sizes"]}
    # The file is VGG16's; the linear layers come with the package.
    if name == LPIPS:
        for key, value in PublishedTrunk().state_dict().items():
            if _comes_with_lpips(key):
                state[key] = value
    target = weights_path(out, "psi3d" if facts["network"] == "psi3d" else name)
    origin = _origin(file, spare) | told
    written = save_weights(target, state, facts | {"imported": origin})
    return Imported(target, facts["network"], written["tensors"], written["values"], sorted(spare))


def _import_discriminator(file: Foreign, synthesizer: Path, sizes: Sizes) -> None:
    """Write the discriminator of a published file beside its synthesizer, where it is of our form.

    A training goes on with it. Files of others have none, or another one.
    """
    module = file.content.get("D") if isinstance(file.content, dict) else None
    if not isinstance(module, Record):
        return
    nodes = _module(file, module)
    wanted = expected_state(lambda: Discriminator(sizes))
    target = synthesizer.with_stem(f"{synthesizer.stem}{DISCRIMINATOR}")
    if problems := dict(_problems(nodes, wanted, [])):
        what = f"{len(problems)} of its tensors are not as expected"
        say(f"the discriminator in {file.path} is left out: {what}")
        return
    state = _checked_state(file, "discriminator", nodes, {key: key for key in wanted}, wanted, [])
    facts = {"network": "discriminator", "sizes": asdict(sizes)}
    save_weights(target, state, facts | {"imported": _origin(file, [])})


def _import_instrument(
    file: Foreign,
    name: str,
    nodes: dict[str, Any],
    told: dict[str, Any],
    out: Path,
) -> Imported:
    instrument = INSTRUMENTS[name]
    network, build = network_of(name, nodes)
    wanted = expected_state(build)
    names = {key: key for key in wanted if key in nodes or not key.endswith(COUNTER)}
    spare = _spare(nodes, names, instrument.spare)
    state = _checked_state(file, network, nodes, names, wanted, spare)
    facts = {
        "network": network,
        "instrument": name,
        "licence": instrument.licence,
        "imported": _origin(file, spare) | told,
    }
    target = instrument_path(out, name)
    written = save_weights(target, with_counters(state, wanted), facts)
    return Imported(target, network, written["tensors"], written["values"], sorted(spare))


def _origin(file: Foreign, spare: list[str]) -> dict[str, Any]:
    """What the JSON says of the file that was imported."""
    return {
        "file": file.path.name,
        "bytes": file.path.stat().st_size,
        "sha256": sha256(file.path),
        "dropped": sorted(spare),
    }


def _checked_state(
    file: Foreign,
    looks_like: str,
    nodes: Mapping[str, Any],
    names: Mapping[str, str],
    wanted: Mapping[str, Tensor],
    spare: list[str],
) -> dict[str, Tensor]:
    """The tensors of the file under our names.

    `names` has ours by theirs, `wanted` is our layout. Raises ValueError that lists all that is wrong.
    """
    # All problems come at once, so that a user need not try again after each.
    expected = {theirs: wanted[ours] for theirs, ours in names.items()}
    problems = dict(_problems(nodes, expected, spare))
    if problems:
        raise ValueError(
            _sentences(f"{file.path} looks like {looks_like}, but is not as expected:", problems)
        )
    # Numbers are read once names and shapes are right: a file of another network costs no copy.
    state, problems = {}, {}
    for theirs, ours in names.items():
        try:
            state[ours] = _numbers(file, nodes[theirs], wanted[ours].dtype)
        except ValueError as error:
            problems[theirs] = f"unreadable: {error}"
    if problems:
        raise ValueError(_sentences(f"{file.path} looks like {looks_like}, but is damaged:", problems))
    return state


def _psi(nodes: Mapping[str, Any], sizes: Sizes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and layout of a Psi, which is driven by E_mot or by the head model's parameters.

    That shows in the width of its input.
    """
    by_flame = expected_state(lambda: Psi(sizes.driven_by("flame")))
    by_emot = expected_state(lambda: Psi(sizes.driven_by("emot")))
    width = "encoder_canonical.maps.0.weight"
    shape = shape_of(nodes[width]) if width in nodes else None
    is_flame = shape == by_flame[width].shape
    motion = "flame" if is_flame else "emot"
    # The published Psi was trained with necks that turn (facts 4.7).
    facts = {"network": "psi", "sizes": asdict(sizes), "motion": motion, "neck": "field"}
    return facts, by_flame if is_flame else by_emot


def _is_driven(state: Mapping[str, Tensor]) -> bool:
    """Whether this is a Psi and not a Psi_3d, which has the same layers and need not say what it is.

    Psi_3d is trained with a motion scale of 0, so that nothing ever moves its motion related layers: their
    norms still have the weights 1 and the biases 0 that they began with (facts 4.6).
    """
    for key, value in state.items():
        if key.startswith("encoder_canonical.") and ".norm2." in key:
            start = 1.0 if key.endswith("weight") else 0.0
            if (value != start).any():
                return True
    return False


def _published_name(ours: str) -> str:
    """The name in the published file: VGG16's layers are counted there, and put into slices by LPIPS."""
    parts = ours.split(".")
    return f"features.{parts[3]}.{parts[4]}" if ours.startswith("lpips.net.") else ours


def _comes_with_lpips(ours: str) -> bool:
    """Whether a part of LPIPS is in its package and not in VGG16's file."""
    return ours.startswith(("lpips.lin", "lpips.scaling_layer"))


def _spare(
    nodes: Mapping[str, Any],
    names: Mapping[str, str],
    beginnings: tuple[str, ...],
) -> list[str]:
    """The tensors of the file that are left out."""
    if not beginnings:
        return []
    return [key for key in nodes if key not in names and key.startswith(beginnings)]


def _problems(
    nodes: Mapping[str, Any],
    wanted: Mapping[str, Tensor],
    spare: list[str],
) -> Iterator[tuple[str, str]]:
    """All that is wrong with the names and shapes."""
    for name, tensor in wanted.items():
        if name not in nodes:
            yield name, f"missing, expected {list(tensor.shape)}"
            continue
        try:
            shape = shape_of(nodes[name])
        except ValueError as error:
            yield name, f"unreadable: {error}"
            continue
        if shape != tuple(tensor.shape):
            yield name, f"has the shape {list(shape)}, expected {list(tensor.shape)}"
    for name in nodes.keys() - wanted.keys() - set(spare):
        yield name, "extra"


def _numbers(
    file: Foreign,
    node: object,
    dtype: torch.dtype,
) -> Tensor:
    # Half precision is widened, but a number is no count.
    tensor = file.tensor(node)
    if tensor.is_floating_point() != dtype.is_floating_point:
        raise ValueError(f"it has the type {tensor.dtype}, expected {dtype}")
    tensor = tensor.to(dtype)
    if dtype.is_floating_point and not tensor.isfinite().all():
        raise ValueError("it has numbers that are not finite")
    return tensor


def _sentences(start: str, problems: Mapping[str, str]) -> str:
    by_kind = sorted(problems.items(), key=lambda item: (item[1].split()[0], item[0]))
    lines = [f"{name!r:.150} {problem}" for name, problem in by_kind]
    if len(lines) > LISTED:
        lines = [*lines[:LISTED], f"and {len(lines) - LISTED} more"]
    return "\n  ".join([start, *lines])


def _some(nodes: Mapping[str, Any]) -> str:
    first = ", ".join(f"{name!r:.80}" for name in list(nodes)[:5])
    return f", among them {first}" if first else ""


def _plain(
    value: object,
    left: list[int],
    depth: int = 0,
) -> Any:
    """What a file says in JSON's terms; `left` counts down the values that are kept."""
    left[0] -= 1
    if left[0] < 0 or depth > DEEPEST:
        return "..."
    if isinstance(value, Record):
        return _plain(value.items or _numpy(value), left, depth + 1)
    if isinstance(value, dict):
        items = list(value.items())[:DESCRIBED]
        return {str(key)[:100]: _plain(item, left, depth + 1) for key, item in items if left[0] > 0}
    if isinstance(value, list | tuple):
        return [_plain(item, left, depth + 1) for item in value[:DESCRIBED] if left[0] > 0]
    if isinstance(value, str):
        return value[:1000]
    ordinary = isinstance(value, float) and math.isfinite(value)
    small = isinstance(value, int) and abs(value) < 1 << 63
    if value is None or ordinary or small:
        return value
    return f"<{type(value).__name__}>"


def _numpy(record: Record) -> Any:
    """The numbers of a short numpy array or of a numpy number; what it is called of anything else."""
    try:
        array = real_value(record) if record.origin.startswith("numpy.") else None
    except ValueError:
        array = None
    if isinstance(array, np.ndarray) and array.size <= DESCRIBED:
        return array.tolist()
    return f"<{record.origin}>"


def _found(told: object, key: str) -> list[Any]:
    """All values of `key` in plain data."""
    found, inside = [], []
    if isinstance(told, list):
        inside = told
    elif isinstance(told, dict):
        inside = list(told.values())
        if key in told:
            found.append(told[key])
    for item in inside:
        found += _found(item, key)
    return found
