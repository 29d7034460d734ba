"""The head model of a run: FLAME where its file is, else the stand-in."""

import os
from pathlib import Path

from model.head.flame import HeadModel
from model.head.flame_file import read_flame
from pipeline.geometry.standin import standin


def load(path: str) -> HeadModel:
    """The head model of the param `flame.model`.

    It is "standin", the path of FLAME's generic_model.pkl with its side files beside it, or that of the
    imported flame.safetensors. `~` is the home of the user.
    """
    return standin() if path == "standin" else read_flame(Path(os.path.expanduser(path)))
