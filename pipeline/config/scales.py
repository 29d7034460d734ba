"""The four scales: one graph and one code with other numbers.

Each is a whole params.yaml in the folder `presets`, with its comments. `paper` holds the published numbers
(facts 1 to 5).
"""

from pathlib import Path

from ruamel.yaml import YAML

from pipeline.config.params import Params, check_params
from pipeline.core.errors import UserError

SCALES = ("smoke", "demo", "study", "paper")
PRESETS = Path(__file__).with_name("presets")


def scale_text(name: str) -> str:
    """The params.yaml of the scale `name`. Raises UserError for an unknown name."""
    if name not in SCALES:
        raise UserError(f"there is no scale {name!r}; choose one of {', '.join(SCALES)}.")
    return (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")


def scale_data(name: str) -> dict:
    """Its keys and values as plain dicts."""
    return YAML(typ="safe", pure=True).load(scale_text(name))


def scale_params(name: str) -> Params:
    """Its values, typed and checked."""
    return check_params(scale_data(name), f"scale {name}")
