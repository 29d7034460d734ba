"""Tensors in files: as the library writes them, also those that are larger than memory."""

import json

import numpy as np
import safetensors.torch
import torch

from model.weights import load_weights
from pipeline.networks.weights import TYPES, forms_of, mapped_tensors, save_in_pieces, save_weights


def test_pieces_make_the_bytes_of_the_whole(tmp_path):
    tensors = {
        "z": torch.rand(5, 3),
        "image": torch.randint(256, (5, 2, 2, 3), dtype=torch.uint8),
        "camera": torch.rand(5, 25),
        "empty": torch.zeros(0, 4),
    }
    facts = {"network": "portraits"}
    save_weights(tmp_path / "whole.safetensors", tensors, facts)
    forms = forms_of(tensors)
    save_in_pieces(tmp_path / "pieces.safetensors", forms, lambda name: tensors[name].split(2), facts)
    for suffix in (".safetensors", ".json"):
        whole = (tmp_path / "whole").with_suffix(suffix)
        pieces = (tmp_path / "pieces").with_suffix(suffix)
        assert pieces.read_bytes() == whole.read_bytes()
    loaded, _ = load_weights(tmp_path / "pieces.safetensors")
    mapped = mapped_tensors(tmp_path / "pieces.safetensors")
    for name, tensor in loaded.items():
        assert np.array_equal(mapped[name], tensor.numpy())


def test_the_file_is_the_one_that_the_library_would_write(tmp_path):
    tensors = {str(number): torch.arange(-3, 4).to(dtype) for number, dtype in enumerate(TYPES)}
    tensors |= {"scalar": torch.tensor(2.0), "empty": torch.zeros(0, 4), "Übergröße": torch.rand(4, 6).T}
    save_weights(tmp_path / "own.safetensors", tensors, {})
    whole = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
    assert (tmp_path / "own.safetensors").read_bytes() == safetensors.torch.save(whole)
    facts = json.loads((tmp_path / "own.json").read_text())
    assert facts["tensors"] == len(tensors)
    assert facts["values"] == sum(tensor.numel() for tensor in tensors.values())
