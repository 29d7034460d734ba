"""The number rule of the parity fixtures: weights and inputs that both sides can make (README beside the fixtures)."""

import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
needs_reference = pytest.mark.skipif(not (REFERENCE / "parity").is_dir(), reason="the parity fixtures are not here")


def fixture(name: str) -> dict[str, np.ndarray]:
    with np.load(REFERENCE / "parity" / f"{name}.npz") as file:
        return {key: file[key].astype(np.float32) if file[key].dtype == np.float16 else file[key] for key in file.files}


def unit(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Zero mean, unit variance, uniform; float32."""
    s = (np.uint64(zlib.crc32(key.encode())) << np.uint64(32)) + np.arange(math.prod(shape), dtype=np.uint64)
    s = s + np.uint64(0x9E3779B97F4A7C15)
    s = (s ^ (s >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    s = (s ^ (s >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    s = s ^ (s >> np.uint64(31))
    return ((((s >> np.uint64(40)).astype(np.float64) + 0.5) * 2.0**-24 - 0.5) * math.sqrt(12)).astype(np.float32).reshape(shape)


def vector(name: str, count: int, amplitude: float) -> torch.Tensor:
    return torch.from_numpy(amplitude * unit(f"input:{name}", (1, count))).float()


def image(key: str, size: int, channels: int = 3) -> torch.Tensor:
    phase, noise = float(unit(f"{key}:phase", (1,))[0]), unit(key, (channels, size, size)).astype(np.float64)
    y, x = np.arange(size)[:, None] / size, np.arange(size)[None] / size
    waves = [0.7 * np.sin(2 * np.pi * (1.5 * (k + 1) * y + (3 - k) * x) + k + phase) for k in range(channels)]
    return torch.from_numpy(np.stack(waves) + 0.3 / math.sqrt(3) * noise)[None].float()


def _weight(key: str, shape: tuple[int, ...], equalised: bool) -> np.ndarray:
    u, leaf = unit(key, shape), key.rsplit(".", 1)[-1]
    fan_in = math.prod(shape[1:])
    if leaf == "running_var":
        return 1 + 0.25 * np.abs(u)
    if leaf in ("noise_const", "w_avg", "const"):
        return u
    if leaf == "noise_strength":
        return np.full(shape, 0.1)
    if "mapping.fc" in key:
        return u * (100 if leaf == "weight" else 10)
    if leaf == "bias":
        return 0.1 * u + key.endswith("affine.bias")
    if leaf == "running_mean":
        return 0.1 * u
    if len(shape) == 1:
        return 0.1 * u + (0.25 if "prelu" in key else 1)
    if equalised:
        return 6 * (u - u.astype(np.float64).mean()) if key.endswith("out_sigma.weight") else u
    return u * math.sqrt((1 if len(shape) == 2 else 2) / fan_in)


def fill(module: nn.Module, equalised: bool) -> nn.Module:
    """Gives every entry of the state dict its number-rule value; the module in evaluation mode, without gradients."""
    state = module.state_dict()
    for key, value in state.items():
        if key.rsplit(".", 1)[-1] not in ("resample_filter", "num_batches_tracked"):
            value.copy_(torch.from_numpy(np.asarray(_weight(key, tuple(value.shape), equalised), np.float32)))
    return module.eval().requires_grad_(False)


def error(found: torch.Tensor, wanted: np.ndarray) -> float:
    """Relative L2 error."""
    a, b = found.detach().double().numpy(), wanted.astype(np.float64)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
