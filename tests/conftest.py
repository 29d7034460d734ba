"""One thread per test process: with more, threads wait for each other on a busy machine, and the bits would differ."""

import torch

torch.set_num_threads(1)
