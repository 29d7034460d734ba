"""The face recognition network as ONNX, in a form that insightface's get_model reads."""

import copy
import io
import warnings
from pathlib import Path

import onnx
import torch

from model.judges.identity import INPUT, IdentityNet
from pipeline.core.files import write_bytes


def export_identity(network: IdentityNet, path: Path) -> Path:
    """Write `network` for inputs of (batch, 3, 112, 112), RGB in [-1, 1]; returns `path`."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter that insightface's readers understand is the older one, and says so.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            copy.deepcopy(network).cpu().eval(),
            (torch.zeros(1, 3, INPUT, INPUT),),
            buffer,
            input_names=["data"],
            output_names=["embedding"],
            dynamic_axes={"data": {0: "batch"}, "embedding": {0: "batch"}},
            opset_version=13,
            dynamo=False,
        )
    model = onnx.load_from_string(buffer.getvalue())
    onnx.checker.check_model(model)
    return write_bytes(path, model.SerializeToString(deterministic=True))
