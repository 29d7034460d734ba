"""Face recognition as insightface's model packs have it: an ONNX file with its norms folded in.

The file is read as data; what runs it later is onnxruntime.
"""

import math
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from pipeline.core.files import sha256
from pipeline.store.sealed import write_sealed

INPUT, OUTPUT = [3, 112, 112], [512]
LARGEST_FILE = 1 << 30  # bytes; the largest of the packs has 261 MB
STANDARD = ("", "ai.onnx")  # names of the operators that need no library of others


def is_onnx(path: Path) -> bool:
    return path.suffix == ".onnx"


def recognition_path(folder: Path) -> Path:
    """Where the imported file lies."""
    return folder / "arcface.onnx"


def import_recognition(path: Path, out: Path) -> tuple[Path, int, int]:
    """Copy a recognition network to `out`; the path, and how many tensors and values it has.

    Raises ValueError when it is something else or needs other files.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path} is larger than a face recognition network is")
    data = path.read_bytes()
    try:
        graph = onnx.load_model_from_string(data).graph
    except DecodeError as error:
        raise ValueError(f"{path} is no ONNX file") from error
    weights = graph.initializer
    names = {tensor.name for tensor in weights}
    inputs = [_shape(value) for value in graph.input if value.name not in names]
    outputs = [_shape(value) for value in graph.output]
    # The first dimension is the batch, whatever the file calls it.
    if [shape[1:] for shape in inputs] != [INPUT] or [shape[1:] for shape in outputs] != [OUTPUT]:
        found = f"its inputs are {inputs} and its outputs {outputs}"
        raise ValueError(f"{path} is no face recognition network of insightface: {found}")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in weights):
        raise ValueError(f"{path} has its numbers in other files")
    if any(node.domain not in STANDARD for node in graph.node):
        raise ValueError(f"{path} has operators that are not standard")
    target = recognition_path(out)
    facts = {
        "network": path.stem,
        "instrument": "arcface",
        "imported": {"file": path.name, "bytes": len(data), "sha256": sha256(path)},
    }
    write_sealed(target, data, facts)
    values = sum(math.prod(tensor.dims) for tensor in weights)
    return target, len(weights), values


def _shape(value: onnx.ValueInfoProto) -> list[Any]:
    dimensions = value.type.tensor_type.shape.dim
    return [each.dim_value or each.dim_param for each in dimensions]
