"""Files of the published formats, made here (facts 10.1).

They are pickles of whole modules that bring their source code, and files of torch.save.
"""

import pickle
import sys
import types
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

SOURCE = "import os\nos.system('echo executed > executed')\n"


def _reconstruct_persistent_obj(facts: dict) -> None:
    # Every published file calls it by this name, and the original runs the source code that is handed over.
    raise AssertionError("the file was executed")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


class EasyDict(dict):
    """A dict with a class of its own, as in the published configurations."""


EasyDict.__module__ = "dnnlib.util"


class Persistent(nn.Module):
    """A module that reduces to one call with its source code and its state."""

    published_name = "Part"

    def __reduce__(self):
        facts = {
            "type": "class",
            "version": 6,
            "module_src": SOURCE,
            "class_name": self.published_name,
            "state": self.__dict__,
        }
        return _reconstruct_persistent_obj, (facts,), None


class Plain(nn.Module):
    """A module that is pickled by its import path."""


Plain.__module__ = "models.blocks"


@contextmanager
def published_modules():
    """The modules whose names the published pickles use exist while one is written."""
    modules = {
        name: types.ModuleType(name)
        for name in (
            "torch_utils",
            "torch_utils.persistence",
            "dnnlib",
            "dnnlib.util",
            "models",
            "models.blocks",
        )
    }
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    modules["dnnlib.util"].EasyDict, modules["models.blocks"].Plain = EasyDict, Plain
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def module_of(state: dict[str, torch.Tensor], name: str, **attributes: object) -> nn.Module:
    """A module with this state dict.

    Floats are parameters, except for those below the name `deformer`; all else is buffers.
    """
    root = Persistent()
    root.published_name = name
    for key, value in state.items():
        module, *path, leaf = [root, *key.split(".")]
        for depth, part in enumerate(path):
            # Published pickles mix both kinds of modules within one tree.
            if part not in module._modules:
                module.add_module(part, (Persistent if depth % 2 == 0 else Plain)())
            module = module._modules[part]
        if value.is_floating_point() and not key.startswith(("deformer", "w_avg")):
            module.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
        else:
            module.register_buffer(leaf, value)
    root.__dict__.update(attributes)
    return root


def write_pickle(
    path: Path,
    state: dict[str, torch.Tensor],
    name: str,
    protocol: int = 4,
    judge: dict[str, torch.Tensor] | None = None,
    **kwargs: object,
) -> Path:
    """A published checkpoint with `state` as its moving average and `judge` as its discriminator.

    FLAME's buffers and a statistic of the training set lie beside it.
    """
    # The published checkpoints bring them along, and an import has to leave them.
    foreign = {
        "deformer.flame.v_template": torch.zeros(5, 3),
        "deformer.flame.faces": torch.zeros(4, 3, dtype=torch.int64),
    }
    foreign["dataset_label_std"] = torch.zeros(())
    kwargs = EasyDict(
        rendering_kwargs=EasyDict(box_warp=1.3, depth_resolution=48, scale=np.float32(2)), **kwargs
    )
    average = module_of(
        state | foreign, name, _init_args=(512,), _init_kwargs=kwargs, neural_rendering_resolution=128
    )
    average.register_buffer("passing", torch.ones(2), persistent=False)
    average.register_buffer("none", None)
    other = {"w_avg": torch.ones(3)}
    content = {
        "training_set_kwargs": EasyDict(path="data/vfhq_512_100/", size=np.int64(3)),
        "G": module_of(other, name),
        "D": module_of(judge, "DualDiscriminatorDeform") if judge else None,
    }
    with published_modules():
        path.write_bytes(pickle.dumps(content | {"G_ema": average, "augment_pipe": None}, protocol))
    return path


def write_state(path: Path, state: dict[str, torch.Tensor], legacy: bool = False) -> Path:
    """A state dict as torch.save writes it, as a zip file or as before."""
    torch.save(OrderedDict(state), path, _use_new_zipfile_serialization=not legacy)
    return path


def random_state(shapes: dict[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random numbers for everything but counters."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(value.shape, generator=generator)
        if value.is_floating_point()
        else torch.zeros(value.shape, dtype=value.dtype)
        for key, value in shapes.items()
    }
