"""What `psi4d parity` says of a fixture, and the one fixture that can be made without a network."""

from pathlib import Path

import numpy as np

from pipeline.parity.cases import rule_check
from pipeline.parity.check import check_fixture
from pipeline.parity.file import Stored
from pipeline.parity.fixture import Fixture
from pipeline.parity.numbers import NumberRule


def write_rule_check(folder: Path, salt: str = "", **changed: np.ndarray) -> Path:
    """The one fixture that can be made without a network."""
    noise = "superresolution.block0.conv0.noise_strength"
    keys = np.array(["w_avg", "decoder.net.0.weight", noise])
    fixture = Fixture(folder, {"keys": Stored(keys)})
    found = rule_check(NumberRule(salt), fixture)
    arrays = found | {"keys": keys, **changed}
    there = {}
    for name, value in arrays.items():
        if value is not None:
            there[name] = np.asarray(value)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rule_check.npz"
    np.savez(path, **there)
    return path


def verdicts(path: Path, salt: str = "") -> dict[str, str]:
    lines = check_fixture(path, NumberRule(salt))
    return {line.name: line.verdict for line in lines}


def with_verdict(found: dict[str, str], verdict: str) -> set[str]:
    return {name for name, value in found.items() if value == verdict}
