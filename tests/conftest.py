"""One thread per test process: with more, threads wait for each other on a busy machine, and the bits would differ."""

# First, as it sets the threads of NumPy.
import pipeline  # noqa: F401, I001

import torch

torch.set_num_threads(1)
