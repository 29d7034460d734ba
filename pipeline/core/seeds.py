"""Seeds: what is drawn depends on names and numbers alone.

The order of draws and the number of workers change nothing, as every draw has a generator of its own. It
starts from a hash of what it is for: a clip, a frame, a view.
"""

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """64 bits that depend on `seed` and every one of `names` (for example a clip, a frame and a view)."""
    # The separator occurs in no name, so ("ab", "c") and ("a", "bc") differ.
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def rng(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator of its own for these names."""
    # Philox: streams of different keys are independent, and its bits are the same on all machines.
    return np.random.Generator(np.random.Philox(derive_seed(seed, *names)))


def torch_rng(seed: int, *names: str | int) -> torch.Generator:
    """A CPU torch generator of its own for these names."""
    return torch.Generator().manual_seed(derive_seed(seed, *names) % 2**63)
