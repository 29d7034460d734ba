"""Tensors that are larger than memory: written in pieces, read where they are looked at."""

import numpy as np
import torch

from model.weights import load_weights
from pipeline.networks.weights import mapped_tensors, save_in_pieces, save_weights


def test_pieces_make_the_bytes_of_the_whole(tmp_path):
    tensors = {
        "z": torch.rand(5, 3),
        "image": torch.randint(256, (5, 2, 2, 3), dtype=torch.uint8),
        "camera": torch.rand(5, 25),
        "empty": torch.zeros(0, 4),
    }
    facts = {"network": "portraits"}
    save_weights(tmp_path / "whole.safetensors", tensors, facts)
    forms = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    save_in_pieces(tmp_path / "pieces.safetensors", forms, lambda name: tensors[name].split(2), facts)
    for suffix in (".safetensors", ".json"):
        whole = (tmp_path / "whole").with_suffix(suffix)
        pieces = (tmp_path / "pieces").with_suffix(suffix)
        assert pieces.read_bytes() == whole.read_bytes()
    loaded, _ = load_weights(tmp_path / "pieces.safetensors")
    mapped = mapped_tensors(tmp_path / "pieces.safetensors")
    for name, tensor in loaded.items():
        assert np.array_equal(mapped[name], tensor.numpy())
