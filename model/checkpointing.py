"""Activation checkpointing: what a part computed is not kept for the backward pass but computed once more.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from model.judges.trunk import Trunk
from model.layers.stylegan import SynthesisBlock
from model.layers.transformer import MotionBlock
from model.psi.background import Background
from model.psi.encoders import DetailEncoder, GlobalEncoder
from model.psi.triplane_decoder import TriplaneDecoder
from model.volume.colour_decoder import ColourDecoder

# Together nearly all that Psi keeps: the encoders, the transformer blocks, the decoders of planes and
# points, and each doubling of the image. The price is one more forward pass of them.
PARTS = (
    GlobalEncoder,
    DetailEncoder,
    MotionBlock,
    TriplaneDecoder,
    Background,
    ColourDecoder,
    SynthesisBlock,
)


def recompute(network: nn.Module) -> None:
    """From now on `network` keeps no more than inputs and results of its PARTS.

    Its gradients stay the same: a part draws nothing at random.
    """
    for part in network.modules():
        if isinstance(part, PARTS):
            part.forward = _computed_again(part.forward)


def recompute_distance(trunk: Trunk) -> None:
    """From now on a perceptual distance keeps its images alone, and its gradients stay the same.

    VGG16's maps of a pair of 512 x 512 pixels take as much as a third of what is kept of a sample otherwise.
    """
    trunk.distance = _computed_again(trunk.distance)


def _computed_again(function: Callable[..., Any]) -> Callable[..., Any]:
    return partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
