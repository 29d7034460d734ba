"""Torchvision's ResNet-34 as the start of Psi's global encoder (facts 1.2; Portrait-4D's constructor)."""

from collections.abc import Mapping

from torch import Tensor

COLOURS, INPUTS = 3, 5


def encoder_start(resnet34: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of `model.psi.encoders.ResNet` by the weights of torchvision's ResNet-34.

    Norms and classes are left out: the convolutions keep their raw kernels, though the encoder has no norm
    behind them.
    """
    state = {}
    for name, value in resnet34.items():
        # Of everything in the file only kernels have four dimensions.
        if value.ndim == 4:
            state[name] = value
    # Coordinate planes get the kernels of red and green; the sum over all inputs stays about as large.
    planes = [channel % COLOURS for channel in range(INPUTS)]
    state["conv1.weight"] = state["conv1.weight"][:, planes] * (COLOURS / INPUTS)
    return state
