"""The number rule of the parity fixtures: weights, inputs, cameras that two implementations can make alone.

tests/published/parity/README.md is the definition (its sections 1 to 3). Nothing made here is a trained
weight.
"""

import math
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

PIECE = 1 << 20  # numbers made at once
AS_CONSTRUCTED = ("resample_filter", "num_batches_tracked")
PLAIN = ("noise_const", "w_avg", "const", "dataset_label_std")
EVERY_LAYER = ("",)  # of the networks whose layers all scale or demodulate their weights at run time
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment, shifts and factors
MIXING = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
FOCAL = 4.757182  # of the cameras, in image widths


@dataclass(frozen=True)
class NumberRule:
    """Every number follows from a key, a text; `salt` in front of every key makes another set of numbers."""

    salt: str = ""

    def unit(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        """Uniform numbers of mean 0 and variance 1, float32.

        The i-th is one step of splitmix64 from the key's checksum.
        """
        flat = np.empty(math.prod(shape), np.float32)
        checksum = zlib.crc32((self.salt + key).encode())
        first = np.uint64(checksum) << np.uint64(32)
        # Piece by piece: what is in between would need several times the memory of the numbers.
        for begin in range(0, len(flat), PIECE):
            piece = flat[begin : begin + PIECE]
            s = np.arange(begin, begin + len(piece), dtype=np.uint64)
            s += first
            s += GOLDEN
            for shift, factor in MIXING:
                s ^= s >> np.uint64(shift)
                s *= np.uint64(factor)
            s ^= s >> np.uint64(31)
            # The upper 24 bits make a number in [0, 1); the root of 12 brings its variance to 1.
            upper = s >> np.uint64(40)
            share = (upper + 0.5) * 2.0**-24
            piece[:] = (share - 0.5) * math.sqrt(12)
        return flat.reshape(shape)

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        amplitude: float = 1.0,
    ) -> Tensor:
        """An input of the networks, float32."""
        numbers = self.unit(f"input:{name}", shape)
        return amplitude * torch.from_numpy(numbers)

    def image(
        self,
        name: str,
        size: int,
        channels: int = 3,
    ) -> Tensor:
        """A picture (1, channels, size, size) of waves and noise, float32 in about [-1, 1]."""
        key = f"input:{name}"
        (phase,) = self.unit(f"{key}:phase", (1,)).tolist()
        noise = self.unit(key, (channels, size, size)).astype(np.float64)
        y = np.arange(size)[:, None] / size
        x = np.arange(size)[None] / size
        waves = []
        for k in range(channels):
            turns = 1.5 * (k + 1) * y + (3 - k) * x
            angle = 2 * np.pi * turns + k + phase
            waves.append(0.7 * np.sin(angle))
        picture = np.stack(waves) + 0.3 / math.sqrt(3) * noise
        return torch.from_numpy(picture)[None].float()

    def weight(
        self,
        key: str,
        shape: tuple[int, ...],
        equalised: bool,
    ) -> np.ndarray | None:
        """The value of a state-dict entry, float32; None for one that stays as it is constructed.

        `equalised`: the layer scales or demodulates its weights at run time (StyleGAN). Raises ValueError
        when no rule fits.
        """
        leaf = key.rsplit(".", 1)[-1]
        if leaf in AS_CONSTRUCTED:
            return None
        if leaf == "noise_strength":
            return np.full(shape, 0.1, np.float32)
        u = self.unit(key, shape)
        if leaf in PLAIN:
            return u
        if leaf == "running_var":
            return 1 + 0.25 * np.abs(u)
        if leaf == "running_mean":
            return 0.1 * u
        if leaf not in ("weight", "bias"):
            raise ValueError(f"the number rule says nothing about the entry {key}")
        if "mapping.fc" in key:
            # Their learning rate is a hundredth, and so are the weights when they are used.
            return u * (100 if leaf == "weight" else 10)
        if leaf == "bias":
            return 0.1 * u + key.endswith("affine.bias")
        # Weights of norms are about 1, those of PReLUs about their usual start.
        if len(shape) == 1:
            return 0.1 * u + (0.25 if "prelu" in key else 1)
        # Weights of sum 0: behind a softplus, which is positive, densities are then of both signs.
        if equalised and key.endswith("out_sigma.weight"):
            centred = u - u.mean(dtype=np.float64)
            return np.float32(6 * centred)
        if equalised:
            return u
        # Outputs are then about as large as inputs, so that an error anywhere shows at the end.
        fan_in = math.prod(shape[1:])
        variance = _gain(key, len(shape)) / fan_in
        return u * math.sqrt(variance)

    def fill(
        self,
        module: nn.Module,
        equalised: tuple[str, ...] = (),
        prefix: str = "",
    ) -> nn.Module:
        """Gives every entry of a module's state dict its value; the module in evaluation mode, no gradients.

        `prefix` stands before the module's own keys; `equalised` are the beginnings of the keys of
        equalised layers.
        """
        for name, value in module.state_dict().items():
            key = prefix + name
            weight = self.weight(key, tuple(value.shape), key.startswith(equalised))
            if weight is not None:
                value.copy_(torch.from_numpy(weight))
        return module.eval().requires_grad_(False)


def _gain(key: str, dimensions: int) -> float:
    """The variance that a layer which is not equalised gives to inputs of variance 1."""
    if key == "generator_triplane.conv_last.weight":
        return 0.125
    if dimensions == 2:
        return 1.0
    return 0.5 if "encoder_global.encoder.layer" in key else 2.0


def camera(
    yaw: float = 0.3,
    pitch: float = 0.1,
    radius: float = 4.2,
    up: float = 0.01,
) -> Tensor:
    """A camera of the fixtures (1, 25) float32, `radius` from a point `up` above the origin.

    It is turned by pitch, then by yaw (radians).
    """
    sin_yaw, cos_yaw = math.sin(yaw), math.cos(yaw)
    sin_pitch, cos_pitch = math.sin(pitch), math.cos(pitch)
    about_y = np.array([[cos_yaw, 0, sin_yaw], [0, 1, 0], [-sin_yaw, 0, cos_yaw]])
    about_x = np.array([[1, 0, 0], [0, cos_pitch, -sin_pitch], [0, sin_pitch, cos_pitch]])
    cam2world = np.eye(4)
    cam2world[:3, :3] = about_y @ about_x
    backwards = cam2world[:3, 2]
    cam2world[:3, 3] = backwards * radius + [0, up, 0]
    intrinsics = [FOCAL, 0, 0.5, 0, FOCAL, 0.5, 0, 0, 1]
    numbers = np.concatenate([cam2world.ravel(), intrinsics])
    return torch.from_numpy(numbers[None]).float()
